"""A router in this process on a real Edge folder, and a small encoder that needs no model."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.router.service import RouterService
from services.router.settings import RouterSettings
from services.shared.auth import caller
from services.shared.errors import InvalidRequest, NotFound, Overloaded, WrongState
from services.shared.interceptors import Door
from services.shared.keys import Keys
from services.shared.metrics import ServiceMetrics
from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2_grpc
from services.shared.state import State
from services.shared.vectors import Array, normalize, pack

MAX_CHARS = 100


def turn(dim: int) -> Array:
    """The head by which the model "turned" differs from "small"."""
    drawn = np.random.default_rng(5).standard_normal((dim, dim))
    return np.linalg.qr(drawn)[0].astype(np.float32)


def encode(model: str, text: str, dim: int) -> Array:
    """The vector that the tests' encoder gives a text: random, but always the same."""
    if model == "turned":
        return turn(dim) @ encode("small", text, dim)
    seed = hashlib.sha256(f"{model}:{text}".encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    return normalize(rng.standard_normal((1, dim)).astype(np.float32))[0]


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    """Keeps the encoder's contract with vectors drawn from the text's digest.

    Models: "small" (32 numbers, declares 8 and 16), "wide" (48, declares none), and "turned", a
    rotation of "small".
    """

    def __init__(self) -> None:
        self.dims = {"small": 32, "wide": 48, "turned": 32}
        self.spaces = {model: f"space-{model}" for model in self.dims}
        self.aliases = {"": "small", "default": "small"}
        self.fail_after: int | None = None
        """Embed calls that succeed from now on; then it is unavailable."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.held = ""
        """The text that waits for `may_answer`; "": all do."""
        self.refusals: Iterator[int] = iter(())
        """Embed calls that are refused from now on, as too much: seconds to wait, of each."""
        self.embeds: list[encoder_pb2.EmbedRequest] = []
        """As they came."""
        self.reranks: list[encoder_pb2.RerankRequest] = []
        self.tenants: list[str | None] = []
        """Whom each was for."""

    def _find(self, name: str) -> str:
        model = self.aliases.get(name, name)
        if model not in self.dims:
            raise NotFound(f"model {name!r} is not loaded")
        return model

    async def GetModel(self, request: Any, context: Any) -> encoder_pb2.GetModelResponse:
        if request.model == "letters":
            kind = encoder_pb2.MODEL_KIND_CROSS_ENCODER
            return encoder_pb2.GetModelResponse(
                model=encoder_pb2.Model(id="letters", space_id="letters", kind=kind)
            )
        model = self._find(request.model)
        declared = (8, 16, 32) if model == "small" else ()
        return encoder_pb2.GetModelResponse(
            model=encoder_pb2.Model(
                id=model,
                space_id=self.spaces[model],
                dim=self.dims[model],
                matryoshka_dims=declared,
            )
        )

    async def GetHead(self, request: Any, context: Any) -> encoder_pb2.GetHeadResponse:
        model = self._find(request.model)
        if model != "turned":
            raise WrongState(f"model {model!r} is no head over a known base")
        dim = self.dims[model]
        return encoder_pb2.GetHeadResponse(
            space_id=self.spaces[model],
            base_space_id=self.spaces["small"],
            dim=dim,
            weight=pack(turn(dim)),
            orthogonal=True,
        )

    async def Rerank(self, request: Any, context: Any) -> encoder_pb2.RerankResponse:
        """Count the query's letters that a text has, as a model might that knows only letters."""
        if request.model in self.dims:
            raise WrongState(f"model {request.model!r} is no cross-encoder")
        if request.model != "letters":
            raise NotFound(f"model {request.model!r} is not loaded")
        self.reranks.append(request)
        self.tenants.append(caller().tenant)
        if not request.query or not all(request.documents):
            raise InvalidRequest("documents must be 1 to 2048, none empty")
        wanted = set(request.query)
        return encoder_pb2.RerankResponse(
            model="letters",
            scores=[len(wanted & set(text)) / len(wanted) for text in request.documents],
            num_tokens=[len(text) for text in request.documents],
            truncated=[i for i, text in enumerate(request.documents) if len(text) > MAX_CHARS],
        )

    async def Embed(self, request: Any, context: Any) -> encoder_pb2.EmbedResponse:
        self.embeds.append(request)
        self.tenants.append(caller().tenant)
        if (retry_after_s := next(self.refusals, None)) is not None:
            error = Overloaded("much work is waiting")
            error.retry_after_s = retry_after_s
            raise error
        model = self._find(request.model)
        if not request.texts or not all(request.texts):
            raise InvalidRequest("texts must be 1 to 2048, none empty")
        if self.held in ("", *request.texts):
            await self.may_answer.wait()
        if self.fail_after is not None:
            if self.fail_after == 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            self.fail_after -= 1
        dim = self.dims[model]
        vectors_BD = np.stack([encode(model, text[:MAX_CHARS], dim) for text in request.texts])
        return encoder_pb2.EmbedResponse(
            model=model,
            space_id=self.spaces[model],
            vectors=[encoder_pb2.Vectors(dim=dim, data=pack(vectors_BD))],
            num_tokens=[len(text) for text in request.texts],
            truncated=[i for i, text in enumerate(request.texts) if len(text) > MAX_CHARS],
        )


@dataclass
class Running:
    """A router, its client and its encoder."""

    service: RouterService
    stub: Any
    encoder: Encoder
    registry: CollectorRegistry = field(repr=False)
    state: State
    keys: Keys
    address: str
    """Of its gRPC, as host:port."""


@pytest.fixture
async def encoder() -> AsyncIterator[tuple[Encoder, str]]:
    """The encoder and its address."""
    servicer = Encoder()
    name = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
    metrics = ServiceMetrics("encoder", CollectorRegistry())
    door = Door(
        {name: metrics},
        State(True, True),
        Keys(),
        {name: frozenset({"Embed", "Rerank", "GetModel"})},
    )
    server = grpc.aio.server(interceptors=[door])
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@asynccontextmanager
async def running(
    encoder: tuple[Encoder, str], data_dir: Path, keys: Keys | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """A router on a folder, from its start to its stop; the next one finds what it left there."""
    servicer, address = encoder
    registry = CollectorRegistry()
    values: dict[str, Any] = {
        "encoder_address": address,
        "data_dir": data_dir,
        "encoder_batch_texts": 16,
        "migrate_page_points": 10,
        "edge_indexing_threshold_kb": 1,
        "max_candidates": 500,
        "max_batch_points": 100,
        "max_text_chars": 1000,
    }
    state, keys = State(True, True), keys or Keys()
    metrics: dict[str, ServiceMetrics] = {}
    open_to_tenants: dict[str, frozenset[str]] = {}
    server = grpc.aio.server(interceptors=[Door(metrics, state, keys, open_to_tenants)])
    port = server.add_insecure_port("127.0.0.1:0")
    settings = RouterSettings(**(values | changes))
    service = RouterService(settings, registry, f"127.0.0.1:{port}")
    metrics[service.grpc_name] = service.metrics
    open_to_tenants[service.grpc_name] = service.open_to_tenants
    service.add_to(server)
    await service.start()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        yield Running(service, stub, servicer, registry, state, keys, f"127.0.0.1:{port}")
    await server.stop(5)
    await service.stop()


@pytest.fixture
async def router(encoder: tuple[Encoder, str], tmp_path: Path) -> AsyncIterator[Running]:
    async with running(encoder, tmp_path) as router:
        yield router
