"""The encoder, as the router sees it: texts in, full vectors out.

Only the full size crosses the wire; the router cuts it itself. Queries go before documents. When
the encoder has too much to do, a query's caller is told at once, and decides; documents are sent
again when the encoder says, for a bounded time, so that a rush of queries fails no write. To ask
again where an encoder is gone is the channel's work alone, see `channel.py`.

Shapes: B texts, D full width.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.shared.auth import ACTING_FOR
from services.shared.channel import Peer
from services.shared.errors import Overloaded, ServiceError, TooLarge, WrongState, peer_errors
from services.shared.pb import encoder_pb2, encoder_pb2_grpc
from services.shared.server import channel_options
from services.shared.tls import TlsFiles
from services.shared.trace import outgoing
from services.shared.vectors import Array, unpack

Role = Literal["query", "document"]

_ROLES = {"query": encoder_pb2.ROLE_QUERY, "document": encoder_pb2.ROLE_DOCUMENT}


@dataclass(frozen=True, slots=True)
class Model:
    """What the encoder says about a model."""

    id: str
    space_id: str
    dim: int
    """Width of the full vector."""
    declared_dims: tuple[int, ...]
    """Sizes the model is trained for; empty: it declares none."""
    max_tokens: int = 0
    """What the model reads of a text; 0: it does not say."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """By what a model differs from its base."""

    space_id: str
    base_space_id: str
    weight_DD: Array
    """The model's vectors are the base's, `normalize(vectors @ weight.T)`."""
    is_orthogonal: bool
    """Whether scores at full size stay as they are, and the transpose undoes it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of some texts."""

    vectors_BD: Array
    space_id: str
    truncated: tuple[int, ...]
    """Positions of texts that were longer than the model reads."""


@dataclass(frozen=True, slots=True)
class Reranked:
    """A cross-encoder's scores."""

    model: str
    """Id of the model."""
    scores: list[float]
    """Of each text, in their order; the higher the better."""
    truncated: tuple[int, ...]
    """Positions of texts that were cut, with the query."""


class EncoderClient:
    """Calls an encoder over gRPC; close it when done.

    Args:
        address: host:port.
        api_key: sent as a bearer token; None: none is sent.
        timeout_s: longest wait for one call.
        batch_texts: texts in one call; longer lists become several.
        concurrency: calls of documents in flight; queries do not wait for these.
        max_message_bytes: longest message either way.
        max_wait_s: longest that documents wait, between calls, for an encoder that refuses them as
            too much.
        tls: what is shown, and of which CA the encoder must be; None: nothing is encrypted.
    """

    def __init__(
        self,
        address: str,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        batch_texts: int = 256,
        concurrency: int = 4,
        max_message_bytes: int = 64 * 2**20,
        max_wait_s: float = 600.0,
        tls: TlsFiles | None = None,
    ) -> None:
        self._peer = Peer(
            address, encoder_pb2_grpc.EncoderServiceStub, channel_options(max_message_bytes), tls
        )
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout_s = timeout_s
        self._batch_texts = batch_texts
        self._documents = asyncio.Semaphore(concurrency)
        self._max_message_bytes = max_message_bytes
        self._max_wait_s = max_wait_s

    async def get_model(self, model: str) -> Model:
        """Look a model up by id or alias.

        Raises:
            NotFound: the encoder does not serve it.
            WrongState: it makes no vectors.
            Unavailable: the encoder cannot be reached.
        """
        request = encoder_pb2.GetModelRequest(model=model)
        with peer_errors("encoder"):
            response = await self._peer.stub.GetModel(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        found = response.model
        if found.kind == encoder_pb2.MODEL_KIND_CROSS_ENCODER:
            raise WrongState(
                f"model {model!r} is a cross-encoder and makes no vectors; name one that does"
            )
        dims = tuple(found.matryoshka_dims)
        return Model(found.id, found.space_id, found.dim, dims, found.max_tokens)

    async def get_head(self, model: str) -> Head:
        """Return a model's head over its base.

        Raises:
            WrongState: it is none over a base that is known.
            NotFound, Unavailable: see `get_model`.
        """
        request = encoder_pb2.GetHeadRequest(model=model)
        with peer_errors("encoder"):
            head = await self._peer.stub.GetHead(
                request, timeout=self._timeout_s, metadata=self._metadata
            )
        weight_DD = unpack(head.weight, head.dim)
        return Head(head.space_id, head.base_space_id, weight_DD, head.orthogonal)

    async def embed_query(self, model: str, text: str, tenant: str | None = None) -> Encoded:
        """Encode one query, for a tenant or for an operator.

        Raises:
            NotFound, Unavailable: see `get_model`.
            Overloaded: the encoder has too much to do; with its time to wait.
        """
        return await self._embed(model, [text], "query", encoder_pb2.PRIORITY_INTERACTIVE, tenant)

    async def rerank(
        self, model: str, query: str, texts: Sequence[str], tenant: str | None = None
    ) -> Reranked:
        """Score texts against a query with a cross-encoder, for a tenant or for an operator.

        Raises:
            NotFound, WrongState: the encoder serves no such model, or it is no cross-encoder.
            Unavailable: the encoder cannot be reached.
            Overloaded: the encoder has too much to do; with its time to wait.
        """
        request = encoder_pb2.RerankRequest(
            model=model,
            query=query,
            documents=texts,
            priority=encoder_pb2.PRIORITY_INTERACTIVE,
        )
        owner = () if tenant is None else ((ACTING_FOR, tenant),)
        with peer_errors("encoder"):
            told = await self._peer.stub.Rerank(
                request, timeout=self._timeout_s, metadata=self._metadata + owner + outgoing()
            )
        if len(told.scores) != len(texts):
            raise ServiceError(
                f"the encoder returned {len(told.scores)} scores for {len(texts)} texts"
            )
        return Reranked(told.model, list(told.scores), tuple(told.truncated))

    async def embed_many(
        self,
        model: str,
        texts: Sequence[str],
        role: Role = "document",
        tenant: str | None = None,
    ) -> Encoded:
        """Encode texts that nobody waits for, some calls at a time.

        Texts longer than the model reads are cut at their end, and their positions returned.

        Raises:
            NotFound, Unavailable: see `get_model`.
            TooLarge: the texts of one call are longer than a message may be.
            Overloaded: the encoder has had too much to do for as long as documents wait.
        """
        step = self._batch_texts
        starts = range(0, len(texts), step)

        async def embed(start: int) -> Encoded:
            async with self._documents:
                some = texts[start : start + step]
                return await self._embed_with_patience(model, some, role, tenant)

        tasks = [asyncio.create_task(embed(start)) for start in starts]
        try:
            parts = await asyncio.gather(*tasks)
        finally:  # when one fails, the others would go on for nobody
            for task in tasks:
                task.cancel()
        spaces = {part.space_id for part in parts}
        if len(spaces) != 1:
            raise ServiceError(f"model {model!r} changed its space while texts were encoded")
        return Encoded(
            np.concatenate([part.vectors_BD for part in parts]),
            spaces.pop(),
            tuple(
                start + position
                for start, part in zip(starts, parts, strict=True)
                for position in part.truncated
            ),
        )

    async def _embed_with_patience(
        self, model: str, texts: Sequence[str], role: Role, tenant: str | None
    ) -> Encoded:
        """Encode the texts of one call; a caller whose deadline passes is cancelled by gRPC."""
        give_up = time.monotonic() + self._max_wait_s
        while True:
            try:
                return await self._embed(model, texts, role, encoder_pb2.PRIORITY_BULK, tenant)
            except Overloaded as error:
                wait_s = error.retry_after_s or 1
                if time.monotonic() + wait_s > give_up:
                    raise
                await asyncio.sleep(wait_s)

    async def _embed(
        self,
        model: str,
        texts: Sequence[str],
        role: Role,
        priority: "encoder_pb2.Priority.ValueType",
        tenant: str | None,
    ) -> Encoded:
        request = encoder_pb2.EmbedRequest(
            model=model,
            texts=texts,
            role=_ROLES[role],
            truncation=encoder_pb2.TRUNCATION_END,
            priority=priority,
        )
        # gRPC would refuse it with the same status as an encoder that has too much to do.
        if (size := request.ByteSize()) > self._max_message_bytes:
            raise TooLarge(
                f"{len(texts)} texts for one call to the encoder have {size} bytes; at most "
                f"{self._max_message_bytes} are accepted"
            )
        with peer_errors("encoder"):
            # What the encoder keeps of texts it keeps by tenant.
            owner = () if tenant is None else ((ACTING_FOR, tenant),)
            response = await self._peer.stub.Embed(
                request, timeout=self._timeout_s, metadata=self._metadata + owner + outgoing()
            )
        full = response.vectors[0]
        vectors_BD = unpack(full.data, full.dim)
        if len(vectors_BD) != len(texts):
            raise ServiceError(
                f"the encoder returned {len(vectors_BD)} vectors for {len(texts)} texts"
            )
        return Encoded(vectors_BD, response.space_id, tuple(response.truncated))

    async def close(self) -> None:
        await self._peer.close()
