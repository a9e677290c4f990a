"""The sizes a collection keeps of each vector, and what each costs in memory.

Shapes: M the width of one size, D the full width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.router.rotation import Rotation
from services.shared.errors import InvalidRequest
from services.shared.vectors import Array, truncate

Quantization = Literal["none", "int8", "turbo4", "turbo2", "turbo1", "binary"]
Placement = Literal["pinned", "cached", "cold"]

BITS: dict[Quantization, int] = {
    "none": 32, "int8": 8, "turbo4": 4, "turbo2": 2, "turbo1": 1, "binary": 1,
}  # fmt: skip
"""Bits a number takes in what a search reads."""

DEFAULT_M = 16
_EF_CONSTRUCT, _FULL_EF_CONSTRUCT = 100, 200
MAX_SIZES = 8
_GRAPH_M = range(4, 129)
# The trainer learns rotations in steps of so many numbers.
_NESTED_STEP = 8

Key = tuple[int, bool]
"""What names a size within its collection: its width, and whether it is nested."""


@dataclass(frozen=True, slots=True)
class Size:
    """One named vector of a collection."""

    dim: int
    quantization: Quantization
    hnsw_m: int
    """Links per point of the graph; 0: no graph, this size only reranks or is scanned."""
    placement: Placement = "cached"
    """Where the original numbers lie: in the disk's cache from the start, or left on the disk until
    they are asked for. They cannot be pinned."""
    nesting: str = ""
    """Id of the rotation that vectors are turned by before they are cut; "": they are not."""
    index_placement: Placement | None = None
    """Where codes and graph lie; None: codes are pinned, and the graph is cached."""

    def request(self) -> "SizeRequest":
        """Return what asks for this size again, whatever the defaults are then."""
        return SizeRequest(
            self.dim, self.quantization, self.hnsw_m, self.placement, self.is_nested,
            self.index_placement,
        )  # fmt: skip

    @property
    def codes_placement(self) -> Placement:
        """Where codes lie."""
        return self.index_placement or "pinned"

    @property
    def graph_placement(self) -> Placement:
        """Where the graph lies."""
        return self.index_placement or "cached"

    @property
    def is_nested(self) -> bool:
        """Whether vectors are turned before they are cut."""
        return bool(self.nesting)

    @property
    def key(self) -> Key:
        """What plans call it by."""
        return self.dim, self.is_nested

    @property
    def is_coarse(self) -> bool:
        """Whether codes are so short that the originals must have the last word on scores."""
        return BITS[self.quantization] <= 2

    @property
    def vector_name(self) -> str:
        """Name of the vector in the engine."""
        return f"n{self.dim}-{self.nesting}" if self.nesting else f"d{self.dim}"


def ef_construct(size: Size, full: int) -> int:
    """Return how many candidates a point's links are chosen from when the graph is built.

    Twice as many for the full size, whose graph has the last word: 36,103 docstrings, 100,000 made
    of them: a recall of 0.99 then takes two thirds of the candidates, for 1.8 times the building.
    A shortlist's misses are few beside those of its prefix.

    Args:
        size: whose graph it is.
        full: the collection's full width.
    """
    is_full = size.dim == full and not size.is_nested
    return _FULL_EF_CONSTRUCT if is_full else _EF_CONSTRUCT


@dataclass(frozen=True, slots=True)
class SizeRequest:
    """A size as a user asks for it."""

    dim: int
    quantization: Quantization = "none"
    hnsw_m: int | None = None
    """None: the default of `resolve_sizes`."""
    placement: Placement | None = None
    """None: the default of `resolve_sizes`."""
    is_nested: bool = False
    index_placement: Placement | None = None
    """As in `Size`."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one vector of a size takes in memory while it is searched."""

    key: Key
    vector_bytes: int
    """What a search over this size reads: codes, or the originals where there are none."""
    graph_bytes: int


def resolve_sizes(
    requested: Sequence[SizeRequest], full: int, declared: Sequence[int] = (), nesting: str = ""
) -> tuple[Size, ...]:
    """Fill in what the user left open.

    Args:
        requested: what the user asked for; empty takes the model's declared sizes, or a quarter
            and a half of the full one.
        full: the model's full width; always kept.
        declared: the sizes that the model is trained for.
        nesting: id of the collection's rotation; "": it has none.

    Returns:
        Ascending, of two of one width the nested one first; the last is the full one.

    Raises:
        InvalidRequest: a size is out of bounds or given twice; the message says what is accepted.
    """
    if not requested:
        dims = declared or [full // 4, full // 2]
        requested = [SizeRequest(dim) for dim in dims if 1 <= dim <= full]
    by_key = {(request.dim, request.is_nested): request for request in requested}
    if len(by_key) < len(requested):
        raise InvalidRequest("sizes: each dim may be given once, and once nested", "sizes")
    for request in requested:
        _check_request(request, full, nesting)
    by_key.setdefault((full, False), SizeRequest(full))
    if len(by_key) > MAX_SIZES:
        raise InvalidRequest(
            f"sizes: at most {MAX_SIZES} sizes a collection, the full one included", "sizes"
        )
    is_only = len(by_key) == 1
    return tuple(
        _resolve(request, is_rerank=request.dim == full and not is_only, nesting=nesting)
        for request in sorted(by_key.values(), key=lambda r: (r.dim, not r.is_nested))
    )


def _check_request(request: SizeRequest, full: int, nesting: str) -> None:
    if not 1 <= request.dim <= full:
        raise InvalidRequest(
            f"sizes: dim must be between 1 and {full}, the model's full size, got {request.dim}",
            "sizes",
        )
    if request.hnsw_m and request.hnsw_m not in _GRAPH_M:
        raise InvalidRequest(
            f"sizes: hnsw_m must be 0 or between {_GRAPH_M.start} and {_GRAPH_M.stop - 1}, "
            f"got {request.hnsw_m}",
            "sizes",
        )
    if request.placement == "pinned":
        raise InvalidRequest(
            "sizes: placement must be unset, PLACEMENT_CACHED or PLACEMENT_COLD, as engines read "
            "original numbers through the disk's cache; index_placement pins codes and graph",
            "sizes",
        )
    if request.is_nested and not nesting:
        raise InvalidRequest(
            "sizes: nested ones need a rotation, which NestCollection learns from the vectors of a "
            "collection and adds them",
            "sizes",
        )
    if request.is_nested and (request.dim % _NESTED_STEP or request.dim >= full):
        raise InvalidRequest(
            f"sizes: the dim of a nested one must be a multiple of {_NESTED_STEP} below {full}, "
            f"got {request.dim}",
            "sizes",
        )


def _resolve(request: SizeRequest, is_rerank: bool, nesting: str) -> Size:
    m, placement = request.hnsw_m, request.placement
    if m is None:
        # With a graph, rescoring a long shortlist may walk it and turn approximate; without one
        # it never does, and the graph's memory is saved.
        m = 0 if is_rerank else DEFAULT_M
    if placement is None:
        # A search reads a shortlist's originals only, or, beside codes, none.
        is_seldom_read = (is_rerank and m == 0) or request.quantization != "none"
        placement = "cold" if is_seldom_read else "cached"
    if request.index_placement is not None and m == 0 and request.quantization == "none":
        raise InvalidRequest(
            f"sizes: index_placement belongs to a size with codes or a graph; leave it unset at "
            f"{request.dim}",
            "sizes",
        )
    rotation = nesting if request.is_nested else ""
    return Size(request.dim, request.quantization, m, placement, rotation, request.index_placement)


def label(key: Key) -> str:
    """Return a size as people read it: "64", "64 nested"."""
    dim, is_nested = key
    return f"{dim} nested" if is_nested else str(dim)


def cut(
    vectors_BD: Array, sizes: Sequence[Size], rotation: Rotation | None = None
) -> dict[str, Array]:
    """Cut full vectors to every size, each row of unit length.

    Args:
        vectors_BD: of the model's own space.
        sizes: what to cut to.
        rotation: turns the vectors of nested sizes; needed if there are any.

    Returns:
        {vector name: vectors_BM}, float32.
    """
    turned_BM = vectors_BD
    if any(size.nesting for size in sizes):
        assert rotation is not None, "nested sizes come with their rotation"
        assert {size.nesting for size in sizes} <= {"", rotation.id}
        turned_BM = rotation.turn(vectors_BD)
    return {
        size.vector_name: truncate(turned_BM if size.nesting else vectors_BD, size.dim)
        for size in sizes
    }


def memory(sizes: Sequence[Size], num_points: int) -> tuple[Memory, ...]:
    """Estimate the bytes a vector takes at each size.

    Codes (measured on Edge 0.9's `quantized.data`): int8 takes one byte a number, padded to 16,
    and a 4-byte offset; binary one bit a number, padded to 128 bits; TurboQuant its bits a
    number and 8 bytes.
    """
    return tuple(
        Memory(size.key, _vector_bytes(size), _graph_bytes(size.hnsw_m, num_points))
        for size in sizes
    )


def _vector_bytes(size: Size) -> int:
    match size.quantization:
        case "none":
            return 4 * size.dim
        case "int8":
            return -(-size.dim // 16) * 16 + 4
        case "binary":
            return -(-size.dim // 128) * 16
        case turbo:
            return -(-size.dim * BITS[turbo] // 8) + 8


def _graph_bytes(hnsw_m: int, num_points: int) -> int:
    """Bytes of links of a mean point, every list full.

    A point has 2m links on the ground level and m on each level above; it reaches level l with
    probability m^-l, so m / (m - 1) links in the mean lie above. Qdrant packs a link into
    ceil(log2(points)) bits. Real lists are not all full: Edge 0.9 wrote .89 of this at m=16 and
    .67 at m=32 (20,000 random points; links_compressed.bin).
    Source: Malkov and Yashunin 2016, "Efficient and robust approximate nearest neighbor search
    using Hierarchical Navigable Small World graphs", arXiv:1603.09320, section 4.
    """
    if hnsw_m == 0:
        return 0
    links = 2 * hnsw_m + hnsw_m / (hnsw_m - 1)
    bits_per_link = max(1, (num_points - 1).bit_length())
    return round(links * bits_per_link / 8)
