"""Sizes of a collection: defaults, bounds, and bytes in memory."""

import numpy as np
import pytest

from services.router.sizes import SizeRequest, cut, memory, resolve_sizes
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


def test_every_cut_has_unit_length():
    """A prefix of a unit vector is shorter than one; each size is scaled back."""
    vectors_BD = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    cuts = cut(vectors_BD, resolve_sizes([SizeRequest(8)], 32))
    assert {name: part.shape for name, part in cuts.items()} == {"d8": (5, 8), "d32": (5, 32)}
    for part in cuts.values():
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-6)
