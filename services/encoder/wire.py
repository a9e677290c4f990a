"""Protobuf to our own types and back."""

from collections.abc import Sequence

from services.encoder.auto import Auto
from services.encoder.embed import Embedded, EmbedInput, Priority
from services.encoder.head import Head
from services.encoder.loaded import LoadedModel
from services.encoder.rerank import Reranked, RerankInput
from services.encoder.tokens import Truncation
from services.shared.errors import InvalidRequest, WrongState
from services.shared.model import Role, TextModel
from services.shared.pb import encoder_pb2 as pb
from services.shared.quantization import Dtype, Stored
from services.shared.vectors import pack

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
_PRIORITIES: dict[int, Priority | None] = {
    pb.PRIORITY_UNSPECIFIED: None,
    pb.PRIORITY_INTERACTIVE: "interactive",
    pb.PRIORITY_BULK: "bulk",
}
_DTYPES: dict[int, Dtype] = {
    pb.DTYPE_UNSPECIFIED: "float32",
    pb.DTYPE_FLOAT32: "float32",
    pb.DTYPE_INT8: "int8",
    pb.DTYPE_UINT8: "uint8",
    pb.DTYPE_BINARY: "binary",
    pb.DTYPE_UBINARY: "ubinary",
}
# Unspecified comes first, so that float32 is answered by its own name.
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}


def read_request(
    request: pb.EmbedRequest, is_stream: bool = False, remaining_s: float | None = None
) -> EmbedInput:
    """Turn a request into what the embedder takes.

    Args:
        request: as it came.
        is_stream: it came in `EmbedStream`, where documents are bulk work unless it says
            otherwise.
        remaining_s: until the caller's deadline; None if there is none.

    Raises:
        InvalidRequest: an enum's number has no name.
    """
    for field, known, enum in (
        ("role", _ROLES, pb.Role),
        ("truncation", _TRUNCATIONS, pb.Truncation),
        ("dtype", _DTYPES, pb.Dtype),
        ("priority", _PRIORITIES, pb.Priority),
    ):
        if getattr(request, field) not in known:
            raise InvalidRequest(f"{field} must be one of {', '.join(enum.keys())}", field)
    role = _ROLES[request.role]
    by_kind: Priority = "bulk" if is_stream and role == "document" else "interactive"
    auto = request.auto
    return EmbedInput(
        request.model,
        list(request.texts),
        list(request.dimensions),
        role,
        _TRUNCATIONS[request.truncation],
        _PRIORITIES[request.priority] or by_kind,
        _DTYPES[request.dtype],
        # A float of 0 cannot be told from none; as a bound it would say nothing anyway.
        Auto(auto.min_retention or None, auto.max_bytes or None)
        if request.HasField("auto")
        else None,
        list(request.images),
        remaining_s,
    )


def read_rerank_request(request: pb.RerankRequest, remaining_s: float | None = None) -> RerankInput:
    """Turn a request into what the reranker takes; arguments and errors as `read_request`."""
    if request.priority not in _PRIORITIES:
        raise InvalidRequest(f"priority must be one of {', '.join(pb.Priority.keys())}", "priority")
    return RerankInput(
        request.model,
        request.query,
        list(request.documents),
        _PRIORITIES[request.priority] or "interactive",
        remaining_s,
    )


def write_rerank_answer(reranked: Reranked) -> pb.RerankResponse:
    return pb.RerankResponse(
        model=reranked.model.id,
        scores=reranked.scores,
        num_tokens=reranked.num_tokens,
        truncated=reranked.truncated,
    )


def write_answer(embedded: Embedded) -> pb.EmbedResponse:
    return pb.EmbedResponse(
        model=embedded.model.id,
        space_id=embedded.model.text_model.space_id,
        vectors=[
            pb.Vectors(
                dim=dim, dtype=pb.Dtype.ValueType(_NUMBERS[embedded.dtype]), data=_pack(vectors)
            )
            for dim, vectors in embedded.vectors
        ],
        num_tokens=embedded.num_tokens,
        truncated=embedded.truncated,
        warnings=embedded.warnings,
    )


def _pack(vectors: Stored) -> bytes:
    """Return rows as little-endian bytes, row after row."""
    return vectors.astype(vectors.dtype.newbyteorder("<"), copy=False).tobytes()


def describe(model: LoadedModel, aliases: Sequence[str]) -> pb.Model:
    text_model = model.text_model
    described = pb.Model(
        id=model.id,
        space_id=text_model.space_id,
        max_tokens=text_model.max_tokens,
        engine=text_model.engine,
        aliases=aliases,
        loaded_at=int(model.loaded_at),
        memory_bytes=model.memory_bytes,
        kind=pb.MODEL_KIND_CROSS_ENCODER,
        device=text_model.device,
    )
    if isinstance(text_model, TextModel):
        described.kind = pb.MODEL_KIND_EMBEDDER
        described.dim = text_model.full
        described.matryoshka_dims.extend(text_model.declared_dims)
        described.needs_role = text_model.needs_role
        described.takes_images = text_model.takes_images
        described.base_space_id = text_model.base_space_id or ""
    return described


def write_head(head: Head, max_message_bytes: int) -> pb.GetHeadResponse:
    """Turn a head into an answer.

    Args:
        head: of a loaded model.
        max_message_bytes: the server's bound. A head of 3072 numbers has 36 MiB, within the default
            of 64 MiB, so the answer needs no stream.

    Raises:
        WrongState: the answer would be longer.
    """
    response = pb.GetHeadResponse(
        space_id=head.space_id,
        base_space_id=head.base_space_id,
        dim=len(head.weight_DD),
        weight=pack(head.weight_DD),
        orthogonal=head.is_orthogonal,
    )
    # gRPC would refuse it with the status of an encoder that has too much to do.
    if (size := response.ByteSize()) > max_message_bytes:
        raise WrongState(
            f"the head has {size} bytes and a message may have {max_message_bytes}; give the "
            "encoder, and who calls it, a greater max_message_bytes"
        )
    return response


def describe_trials(model: LoadedModel) -> list[pb.EngineTrial]:
    text_model = model.text_model
    has_roles = isinstance(text_model, TextModel) and text_model.needs_role
    return [
        pb.EngineTrial(
            engine=f"{role} {trial.engine}" if has_roles else trial.engine,
            min_cosine=trial.min_cosine,
            tokens_per_second=trial.tokens_per_second,
        )
        for role, trial in text_model.trials
    ]
