"""Sizes of a collection: defaults, bounds, and bytes in memory."""

import numpy as np
import pytest

from services.router.sizes import BITS, Size, SizeRequest, cut, memory, resolve_sizes
from services.shared.errors import InvalidRequest


def dims_and_links(*args):
    return [(size.dim, size.hnsw_m) for size in resolve_sizes(*args)]


def test_defaults_are_the_declared_sizes_else_a_quarter_and_a_half():
    """The full size is always kept, without a graph unless it is the only one."""
    assert dims_and_links([], 384, (64, 128, 384)) == [(64, 16), (128, 16), (384, 0)]
    assert dims_and_links([], 384) == [(96, 16), (192, 16), (384, 0)]
    assert dims_and_links([SizeRequest(384)], 384) == [(384, 16)]
    assert dims_and_links([SizeRequest(64)], 384) == [(64, 16), (384, 0)]
    assert dims_and_links([], 1) == [(1, 16)]


def test_what_is_asked_for_is_kept():
    """Links and quantisation of each size, the full one included; sizes come out ascending."""
    sizes = resolve_sizes([SizeRequest(384, "int8", 32), SizeRequest(64, "binary", 0)], 384)
    assert [(s.dim, s.quantization, s.hnsw_m) for s in sizes] == [
        (64, "binary", 0),
        (384, "int8", 32),
    ]


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([SizeRequest(0)], "between 1 and 384, the model's full size, got 0"),
        ([SizeRequest(385)], "got 385"),
        ([SizeRequest(64), SizeRequest(64)], "given once"),
        ([SizeRequest(64, hnsw_m=3)], "0 or between 4 and 128, got 3"),
        ([SizeRequest(64, hnsw_m=129)], "got 129"),
        ([SizeRequest(dim) for dim in range(1, 9)], "at most 8 sizes"),
    ],
)
def test_bad_sizes_are_refused_with_what_would_be_accepted(requests, says):
    """Each mistake has its sentence."""
    with pytest.raises(InvalidRequest, match=says):
        resolve_sizes(requests, 384)


def test_memory_counts_codes_and_links():
    """Bytes as the engine lays them out: padding and offsets of codes, packed links of graphs."""
    sizes = resolve_sizes(
        [SizeRequest(64, "binary"), SizeRequest(100, "int8"), SizeRequest(200, "binary", 8)], 384
    )
    # 20,000 points need 15 bits a link; 2m + m / (m - 1) links in the mean.
    assert [(m.vector_bytes, m.graph_bytes) for m in memory(sizes, 20_000)] == [
        (16, 62),
        (116, 62),
        (32, 32),
        (1536, 0),
    ]
    assert memory(sizes, 0)[0].graph_bytes >= 0


@pytest.mark.parametrize(
    ("quantization", "num_bytes"), [("turbo4", 58), ("turbo2", 33), ("turbo1", 21)]
)
def test_memory_of_turboquant_is_its_bits_and_eight_bytes(quantization, num_bytes):
    """A vector that does not fill its last byte still takes it."""
    (size, _) = resolve_sizes([SizeRequest(99, quantization)], 384)
    assert memory([size], 1000)[0].vector_bytes == num_bytes


@pytest.mark.parametrize(
    ("requests", "placements"),
    [
        ([SizeRequest(64), SizeRequest(128)], ["cached", "cached", "cold"]),
        ([SizeRequest(64, "turbo1"), SizeRequest(384, hnsw_m=8)], ["cold", "cached"]),
        ([SizeRequest(64, "int8", 0), SizeRequest(384, "turbo4", 8)], ["cold", "cold"]),
        ([SizeRequest(384)], ["cached"]),
        ([SizeRequest(384, hnsw_m=0)], ["cached"]),
        (
            [SizeRequest(64, placement="cold"), SizeRequest(384, "int8", placement="cached")],
            ["cold", "cached"],
        ),
    ],
)
def test_originals_that_a_search_seldom_reads_stay_on_disk(requests, placements):
    """Beside codes, and where they only rerank, unless it was said where they go."""
    assert [size.placement for size in resolve_sizes(requests, 384)] == placements


def test_a_size_asks_for_itself():
    """Resolved again, alone or beside others, it is what it was."""
    sizes = resolve_sizes(
        [
            SizeRequest(32, "int8", index_placement="cold"),
            SizeRequest(64, hnsw_m=8, index_placement="pinned"),
            SizeRequest(64, "turbo4", is_nested=True),
            SizeRequest(384, placement="cached"),
        ],
        384,
        nesting="rotation",
    )
    again = resolve_sizes([size.request() for size in sizes], 384, nesting="rotation")
    assert again == sizes
    assert [size.index_placement for size in sizes] == ["cold", None, "pinned", None]


def test_codes_of_up_to_two_bits_are_coarse():
    """Their scores are not the last word, unless a plan says so."""
    coarse = {name for name in BITS if Size(64, name, 0).is_coarse}
    assert coarse == {"binary", "turbo1", "turbo2"}


def test_every_cut_has_unit_length():
    """A prefix of a unit vector is shorter than one; each size is scaled back."""
    vectors_BD = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    cuts = cut(vectors_BD, resolve_sizes([SizeRequest(8)], 32))
    assert {name: part.shape for name, part in cuts.items()} == {"d8": (5, 8), "d32": (5, 32)}
    for part in cuts.values():
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-6)
