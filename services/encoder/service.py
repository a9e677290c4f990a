"""The encoder's gRPC door: protobuf in and out, nothing else of protobuf further in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from starlette.routing import Route

from services.encoder.admission import Admission
from services.encoder.embed import Embedder
from services.encoder.follow import Follower
from services.encoder.head import read_head
from services.encoder.loaded import LoadedModel
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import Models
from services.encoder.openai import OPEN_TO_TENANTS, OpenAIRoutes
from services.encoder.rerank import Reranker
from services.encoder.rerank_http import RERANK_OPEN_TO_TENANTS, RerankRoutes
from services.encoder.scopes import SCOPES
from services.encoder.settings import EncoderSettings
from services.encoder.stream import answer_in_order
from services.encoder.threads import Threads
from services.encoder.wire import (
    describe,
    describe_trials,
    read_request,
    read_rerank_request,
    write_answer,
    write_head,
    write_rerank_answer,
)
from services.shared.auth import caller
from services.shared.card import FILENAME
from services.shared.model import TextModel
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.rpcs import ENCODER_OPEN_TO_TENANTS

_Context = Any  # grpc.aio's context; unused, as errors are raised


class EncoderService(pb_grpc.EncoderServiceServicer):
    """The encoder as the server sees it (`services.shared.server.Service`).

    Args:
        settings: see there.
        registry: gets the encoder's metrics.
    """

    name = "encoder"
    grpc_name = pb.DESCRIPTOR.services_by_name["EncoderService"].full_name
    open_to_tenants = ENCODER_OPEN_TO_TENANTS | OPEN_TO_TENANTS | RERANK_OPEN_TO_TENANTS
    scopes = SCOPES

    def __init__(self, settings: EncoderSettings, registry: CollectorRegistry) -> None:
        encoder_metrics = EncoderMetrics(registry)
        self.metrics = encoder_metrics
        self._stream_read_ahead = settings.stream_read_ahead
        self._max_message_bytes = settings.max_message_bytes
        self._models = Models(settings, encoder_metrics)
        path = settings.served_file
        self._follower = Follower(path, self._models) if path else None
        # All models share one forward thread, so what waits for it is bounded over all of them.
        admission = Admission(
            settings.max_queue_s,
            settings.max_bulk_queue_s,
            settings.max_queued_tokens,
            encoder_metrics,
        )
        self._threads = Threads(settings.tokenizer_threads)
        parts = (self._models, admission, self._threads, settings, encoder_metrics)
        self._embedder, self._reranker = Embedder(*parts), Reranker(*parts)
        self._routes = [
            *OpenAIRoutes(self._models, self._embedder, settings).routes(),
            *RerankRoutes(self._reranker, settings).routes(),
        ]

    def add_to(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_EncoderServiceServicer_to_server(self, server)

    def routes(self) -> list[Route]:
        return self._routes

    async def start(self) -> None:
        await self._models.start()
        if self._follower:
            await self._follower.start()

    async def stop(self) -> None:
        if self._follower:
            await self._follower.stop()
        await self._models.close()
        self._threads.close()

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:
        return await self._embed(request, remaining_s=context.time_remaining())

    async def EmbedStream(
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: _Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        async def answer(request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
            return pb.EmbedStreamResponse(embed=await self._embed(request.embed, is_stream=True))

        answers = answer_in_order(request_iterator, answer, self._stream_read_ahead)
        # Left at once when the caller leaves, so that what he asked for is cancelled.
        async with contextlib.aclosing(answers):
            async for response in answers:
                yield response

    async def _embed(
        self, request: pb.EmbedRequest, is_stream: bool = False, remaining_s: float | None = None
    ) -> pb.EmbedResponse:
        wanted = read_request(request, is_stream, remaining_s)
        wanted = replace(wanted, tenant=caller().tenant)
        return write_answer(await self._embedder.embed(wanted))

    async def Rerank(self, request: pb.RerankRequest, context: _Context) -> pb.RerankResponse:
        wanted = read_rerank_request(request, context.time_remaining())
        return write_rerank_answer(await self._reranker.rerank(wanted))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: _Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._describe(m) for m in self._models.list()])

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.GetModelResponse:
        model = self._models.get(request.model)
        text_model, text = model.text_model, ""
        if isinstance(text_model, TextModel) and text_model.card:
            text = await asyncio.to_thread((text_model.folder / FILENAME).read_text)
        return pb.GetModelResponse(
            model=self._describe(model), card_json=text, trials=describe_trials(model)
        )

    async def GetHead(self, request: pb.GetHeadRequest, context: _Context) -> pb.GetHeadResponse:
        model = self._models.embedder(request.model)
        head = await asyncio.to_thread(read_head, model)
        return write_head(head, self._max_message_bytes)

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: _Context
    ) -> pb.LoadModelResponse:
        model = await self._models.load(request.source, request.id)
        return pb.LoadModelResponse(model=self._describe(model))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: _Context
    ) -> pb.UnloadModelResponse:
        # An unknown id is refused by `unload`; an alias is not an id.
        model = next((m for m in self._models.list() if m.id == request.id), None)
        await self._models.unload(request.id)
        if model:
            self._embedder.forget(model)
        return pb.UnloadModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: _Context) -> pb.SetAliasResponse:
        await self._models.set_alias(request.alias, request.model)
        return pb.SetAliasResponse()

    def _describe(self, model: LoadedModel) -> pb.Model:
        return describe(model, self._models.aliases_of(model.id))
