"""The encoder's gRPC door: protobuf in and out, nothing else of protobuf further in."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.encoder.embed import Embedder, EmbedInput, Truncation
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import LoadedModel, Models
from services.encoder.openai import OpenAIRoutes
from services.encoder.settings import EncoderSettings
from services.shared.card import FILENAME
from services.shared.errors import InvalidRequest
from services.shared.model import Role
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.vectors import pack

_Context = Any  # grpc.aio's context; unused, as errors are raised
_ROLES: dict[int, Role] = {
    pb.ROLE_UNSPECIFIED: "none",
    pb.ROLE_QUERY: "query",
    pb.ROLE_DOCUMENT: "document",
}
_TRUNCATIONS: dict[int, Truncation] = {
    pb.TRUNCATION_UNSPECIFIED: "refuse",
    pb.TRUNCATION_END: "end",
    pb.TRUNCATION_START: "start",
}


class EncoderService(pb_grpc.EncoderServiceServicer):
    """The encoder as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the encoder's metrics.
    """

    name = "encoder"
    grpc_name = pb.DESCRIPTOR.services_by_name["EncoderService"].full_name

    def __init__(self, settings: EncoderSettings, registry: CollectorRegistry) -> None:
        encoder_metrics = EncoderMetrics(registry)
        self.metrics = encoder_metrics
        self._models = Models(settings, encoder_metrics)
        self._embedder = Embedder(self._models, settings, encoder_metrics)
        self._routes = OpenAIRoutes(self._models, self._embedder, settings.max_body_bytes)

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_EncoderServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        return self._routes.routes()

    async def start(self) -> None:
        await self._models.start()

    async def stop(self) -> None:
        await self._models.close()
        self._embedder.close()

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        return await self._embed(request)

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: _Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        async for request in request_iterator:
            yield pb.EmbedStreamResponse(embed=await self._embed(request.embed))

    async def _embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        if request.role not in _ROLES:
            raise InvalidRequest("role must be ROLE_QUERY, ROLE_DOCUMENT or unset", "role")
        embedded = await self._embedder.embed(
            EmbedInput(
                request.model,
                list(request.texts),
                list(request.dimensions),
                _ROLES[request.role],
                _TRUNCATIONS.get(request.truncation, "refuse"),
            )
        )
        return pb.EmbedResponse(
            model=embedded.model.id,
            space_id=embedded.model.text_model.space_id,
            vectors=[
                pb.Vectors(dim=dim, dtype=pb.DTYPE_FLOAT32, data=pack(vectors_BM))
                for dim, vectors_BM in embedded.vectors
            ],
            num_tokens=embedded.num_tokens,
            truncated=embedded.truncated,
            warnings=embedded.warnings,
        )

    async def ListModels(
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._describe(m) for m in self._models.list()])

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:
        model = self._models.get(request.model)
        card = model.text_model.folder / FILENAME
        text = await asyncio.to_thread(card.read_text) if model.text_model.card else ""
        return pb.GetModelResponse(model=self._describe(model), card_json=text)

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: _Context
    ) -> pb.LoadModelResponse:
        model = await self._models.load(request.source, request.id)
        return pb.LoadModelResponse(model=self._describe(model))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: _Context
    ) -> pb.UnloadModelResponse:
        await self._models.unload(request.id)
        return pb.UnloadModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: _Context) -> pb.SetAliasResponse:
        await self._models.set_alias(request.alias, request.model)
        return pb.SetAliasResponse()

    def _describe(self, model: LoadedModel) -> pb.Model:
        text_model = model.text_model
        return pb.Model(
            id=model.id,
            space_id=text_model.space_id,
            dim=text_model.full,
            matryoshka_dims=text_model.declared_dims,
            max_tokens=text_model.max_tokens,
            engine=text_model.engine,
            aliases=self._models.aliases_of(model.id),
            loaded_at=int(model.loaded_at),
        )
