"""A collection in Qdrant's words: how a server keeps a named vector, and what we know of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qdrant_client import models

from services.router.hybrid.text_index import TextIndex, document_terms
from services.router.sizes import Placement, Size, ef_construct
from services.router.spread import Spread
from services.router.storage.metadata import from_metadata
from services.router.storage.store import Collection, not_found

METADATA_KEY = "matryoshka"

_MEMORY: dict[Placement, models.Memory] = {
    "pinned": models.Memory.PINNED,
    "cached": models.Memory.CACHED,
    "cold": models.Memory.COLD,
}
_Coded = models.ScalarQuantization | models.BinaryQuantization | models.TurboQuantization


def read_metadata(info: models.CollectionInfo, name: str) -> dict[str, Any]:
    """Return what we keep with a collection; NotFound, if it is somebody else's."""
    metadata: dict[str, Any] | None = (info.config.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise not_found(name)
    return metadata


def read_collection(info: models.CollectionInfo, name: str) -> Collection:
    """Return a collection, and how it lies on the server now; NotFound as `read_metadata`."""
    params = info.config.params
    spread = Spread(params.shard_number or 1, params.replication_factor or 1)
    return replace(from_metadata(read_metadata(info, name)), spread=spread)


def spread_params(spread: Spread) -> dict[str, Any]:
    """Return how the server is told to spread a new collection.

    With a `write_consistency_factor` of 1, the server's default, a write is acknowledged that one
    replica has and another failed to get; if the first is lost before the other has caught up, so
    is the write. With 2 it is in two places, and more would not help against the loss of one, but
    let writes fail where one of three is away. Of two replicas both must be there for writes; reads
    go on with one. The server asks for no more than there are replicas, so 2 is right for any
    number of them (minimal_success_count in qdrant/qdrant, lib/collection/src/shards/replica_set/
    update.rs). A write that is refused may be on some replicas all the same, until it is repeated.
    """
    return {
        "shard_number": spread.shards or None,
        "replication_factor": spread.replicas or None,
        "write_consistency_factor": 2,
    }


def vector_params(size: Size, full: int) -> models.VectorParams:
    """Return what a named vector is created with, in a collection of that full width."""
    return models.VectorParams(
        size=size.dim,
        distance=models.Distance.COSINE,
        hnsw_config=_graph(size, full),
        quantization_config=_codes(size),
        memory=_MEMORY[size.placement],
    )


def sparse_config(text_index: TextIndex | None) -> dict[str, models.SparseVectorParams] | None:
    """Return what a text index is created with. Terms are weighed by us, not by the server."""
    if text_index is None:
        return None
    index = models.SparseIndexParams(memory=models.Memory.CACHED)
    return {text_index.vector_name: models.SparseVectorParams(index=index)}


def sparse_vectors(texts: Sequence[str], text_index: TextIndex) -> list[models.SparseVector]:
    """Return texts as the terms they hold; slow, see there."""
    terms = [document_terms(text, text_index) for text in texts]
    return [models.SparseVector(indices=some.indices, values=some.values) for some in terms]


def vector_name(size: Size) -> models.DenseVectorNameConfig:
    """Return what a named vector is added to a collection with; `vector_diff` says the rest."""
    dense = models.DenseVectorConfig(size=size.dim, distance=models.Distance.COSINE)
    return models.DenseVectorNameConfig(dense=dense)


def vector_diff(size: Size, full: int) -> models.VectorParamsDiff:
    """Return what can be changed of a named vector, in a collection of that full width."""
    return models.VectorParamsDiff(
        hnsw_config=_graph(size, full),
        quantization_config=_codes(size) or models.Disabled.DISABLED,
        memory=_MEMORY[size.placement],
    )


def _graph(size: Size, full: int) -> models.HnswConfigDiff:
    return models.HnswConfigDiff(
        m=size.hnsw_m,
        ef_construct=ef_construct(size, full),
        memory=_MEMORY[size.graph_placement],
    )


def _codes(size: Size) -> _Coded | None:
    memory = _MEMORY[size.codes_placement]
    match size.quantization:
        case "none":
            return None
        case "int8":
            return models.ScalarQuantization(
                scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, memory=memory)
            )
        case "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(memory=memory))
        case turbo:
            bits = models.TurboQuantBitSize
            wanted = {"turbo4": bits.BITS4, "turbo2": bits.BITS2, "turbo1": bits.BITS1}[turbo]
            return models.TurboQuantization(
                turbo=models.TurboQuantQuantizationConfig(bits=wanted, memory=memory)
            )
