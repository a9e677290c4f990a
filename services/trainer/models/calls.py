"""The trainer's gRPC calls on versions and promotions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from services.shared.errors import InvalidRequest
from services.shared.paging import Paging
from services.shared.pb import trainer_pb2 as pb
from services.trainer.models.models_wire import (
    read_wanted,
    write_comparison,
    write_promotion,
    write_version,
)
from services.trainer.models.promoter import Promoter
from services.trainer.models.promotion import Promotions
from services.trainer.models.registry import Registry, Version
from services.trainer.models.served import ServedModels

_Context = Any  # grpc.aio's context; unused, as errors are raised

_DEFAULT_PAGE, _MAX_PAGE = 20, 100


class ModelCalls:
    """What the trainer's servicer inherits; it sets these four when it starts."""

    _registry: Registry
    _promotions: Promotions
    _promoter: Promoter
    _served: ServedModels

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: _Context
    ) -> pb.ListVersionsResponse:
        paging = _paging(request.limit, request.after)
        page = await asyncio.to_thread(self._registry.page, paging, request.name)
        aliases = await asyncio.to_thread(self._registry.aliases)
        versions = [self._write_version(version, aliases) for version in page.items]
        return pb.ListVersionsResponse(versions=versions, has_more=page.has_more)

    async def GetVersion(
        self, request: pb.GetVersionRequest, context: _Context
    ) -> pb.GetVersionResponse:
        version = await asyncio.to_thread(self._registry.get, request.id)
        aliases = await asyncio.to_thread(self._registry.aliases)
        return pb.GetVersionResponse(version=self._write_version(version, aliases))

    async def SetVersionAlias(
        self, request: pb.SetVersionAliasRequest, context: _Context
    ) -> pb.SetVersionAliasResponse:
        await asyncio.to_thread(self._registry.set_alias, request.alias, request.id)
        return pb.SetVersionAliasResponse()

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: _Context
    ) -> pb.DeleteVersionResponse:
        version = await asyncio.to_thread(self._registry.get, request.id)
        await asyncio.to_thread(self._promotions.check_free, version.id)
        await asyncio.to_thread(self._registry.check_unused, version.id)
        await asyncio.to_thread(self._served.check_free, version.id)
        freed = await asyncio.to_thread(self._registry.delete, version.id)
        await asyncio.to_thread(self._served.remove, version.id)
        folder = self._registry.model_dir(version.job_id).parent
        return pb.DeleteVersionResponse(freed_bytes=freed, job_dir=str(folder))

    async def CompareVersions(
        self, request: pb.CompareVersionsRequest, context: _Context
    ) -> pb.CompareVersionsResponse:
        slices = await asyncio.to_thread(self._registry.compare, request.before, request.after)
        return pb.CompareVersionsResponse(slices=write_comparison(slices))

    async def Promote(
        self, request: pb.PromoteRequest, context: _Context
    ) -> AsyncIterator[pb.PromoteResponse]:
        begun = await self._promoter.begin(read_wanted(request))
        async for promotion in self._promoter.watch(begun.id):
            yield pb.PromoteResponse(promotion=write_promotion(promotion))

    async def GetPromotion(
        self, request: pb.GetPromotionRequest, context: _Context
    ) -> pb.GetPromotionResponse:
        promotion = await asyncio.to_thread(self._promotions.get, request.id)
        return pb.GetPromotionResponse(promotion=write_promotion(promotion))

    async def ListPromotions(
        self, request: pb.ListPromotionsRequest, context: _Context
    ) -> pb.ListPromotionsResponse:
        paging = _paging(request.limit, request.after)
        page = await asyncio.to_thread(self._promotions.page, paging)
        promotions = [write_promotion(promotion) for promotion in page.items]
        return pb.ListPromotionsResponse(promotions=promotions, has_more=page.has_more)

    async def CutOverPromotion(
        self, request: pb.CutOverPromotionRequest, context: _Context
    ) -> pb.CutOverPromotionResponse:
        promotion = await self._promoter.cut_over(request.id)
        return pb.CutOverPromotionResponse(promotion=write_promotion(promotion))

    async def RollBackPromotion(
        self, request: pb.RollBackPromotionRequest, context: _Context
    ) -> pb.RollBackPromotionResponse:
        promotion = await self._promoter.roll_back(request.id)
        return pb.RollBackPromotionResponse(promotion=write_promotion(promotion))

    async def FinishPromotion(
        self, request: pb.FinishPromotionRequest, context: _Context
    ) -> pb.FinishPromotionResponse:
        promotion = await self._promoter.finish(request.id)
        return pb.FinishPromotionResponse(promotion=write_promotion(promotion))

    def _write_version(self, version: Version, aliases: dict[str, list[str]]) -> pb.ModelVersion:
        folder = self._registry.model_dir(version.job_id)
        return write_version(version, aliases.get(version.id, []), folder)


def _paging(limit: int, after: str) -> Paging:
    if limit > _MAX_PAGE:
        raise InvalidRequest(f"limit must be 1 to {_MAX_PAGE}, got {limit}", "limit")
    return Paging(limit or _DEFAULT_PAGE, after=after)
