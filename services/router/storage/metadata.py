"""A collection as JSON, as it is stored with its points."""

from dataclasses import asdict
from typing import Any

from services.router.hybrid.text_index import TextIndex
from services.router.sizes import Placement, Quantization, Size
from services.router.spread import WHOLE
from services.router.storage.store import Collection


def to_metadata(collection: Collection) -> dict[str, Any]:
    """Return a collection as JSON, to be stored with it."""
    return {
        "version": 1,
        "name": collection.name,
        "model": collection.model,
        "space_id": collection.space_id,
        "sizes": [
            {
                "dim": size.dim,
                "quantization": size.quantization,
                "hnsw_m": size.hnsw_m,
                "placement": size.placement,
                "nesting": size.nesting,
                "index_placement": size.index_placement,
            }
            for size in collection.sizes
        ],
        "calibration": collection.calibration,
        "change": collection.change,
        "mirror": collection.mirror,
        "tenant": collection.tenant,
        "text_index": collection.text_index and asdict(collection.text_index),
    }


def from_metadata(metadata: dict[str, Any]) -> Collection:
    """Undo `to_metadata`."""
    return Collection(
        metadata["name"],
        metadata["model"],
        metadata["space_id"],
        tuple(_size(**size) for size in metadata["sizes"]),
        metadata.get("calibration"),
        metadata.get("change"),
        metadata.get("mirror"),
        metadata.get("tenant"),
        TextIndex(**text_index) if (text_index := metadata.get("text_index")) else None,
        WHOLE,
    )


def _size(
    dim: int,
    quantization: Quantization,
    hnsw_m: int,
    placement: Placement = "cached",
    nesting: str = "",
    index_placement: Placement | None = None,
) -> Size:
    return Size(int(dim), quantization, int(hnsw_m), placement, nesting, index_placement)
