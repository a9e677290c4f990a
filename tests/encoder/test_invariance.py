"""The same text gives the same vector, whatever it is sent with."""

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve

DIMS = [8, 64, 200, 384]
# Largest difference of any number of a unit vector. float32: sums are added up in another order
# when a batch is cut differently. bfloat16 and int8 round what they add up to eight bits, so the
# same differences weigh 2^16 times as much at worst.
FLOAT32_BOUND = 1e-5
DEFAULT_BOUND = 0.02

words = st.sampled_from(
    ["a", "the", "vector", "of", "nested", "Matryoshka", "42", "x?", "été", "入れ子", "😀", "un-do"]
)
texts = st.lists(words, min_size=1, max_size=60).map(" ".join)


@pytest.fixture(scope="module")
def exact_process(tmp_path_factory):
    """An encoder without a cache, in float32."""
    process = serve(
        tmp_path_factory.mktemp("exact"), "serve", "encoder",
        MATRYOSHKA_ENCODER_PRECISION="float32", MATRYOSHKA_ENCODER_CACHE_BYTES="0",
    )  # fmt: skip
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def default_process(tmp_path_factory):
    """An encoder without a cache, with whatever engine is best here."""
    process = serve(
        tmp_path_factory.mktemp("default"), "serve", "encoder", MATRYOSHKA_ENCODER_CACHE_BYTES="0"
    )
    yield process
    assert process.stop() == 0


def check(process, bound, examples):
    """Each text alone, among others in one request, and beside other requests at once."""
    with grpc.insecure_channel(process.grpc) as channel:
        stub = pb_grpc.EncoderServiceStub(channel)

        def start(batch):
            return stub.Embed.future(pb.EmbedRequest(texts=batch, dimensions=DIMS), timeout=60)

        def rows(call, dim):
            vectors = call.result().vectors[DIMS.index(dim)]
            return np.frombuffer(vectors.data, "<f4").reshape(-1, dim)

        @settings(max_examples=examples)
        @given(st.lists(texts, min_size=1, max_size=12), st.lists(texts, max_size=4))
        def same(batch, others):
            alone = [start([text]) for text in batch[:2]]
            [call.result() for call in alone]
            together = start(batch)
            together.result()
            beside = [start([text]) for text in [*others, *batch[:2], *others]]
            for dim in DIMS:
                expected = np.concatenate([rows(call, dim) for call in alone])
                np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
                np.testing.assert_allclose(rows(together, dim)[:2], expected, atol=bound)
                mixed = beside[len(others) : len(others) + 2]
                mixed = np.concatenate([rows(call, dim) for call in mixed[: len(alone)]])
                np.testing.assert_allclose(mixed, expected, atol=bound)

        same()


def test_a_text_has_one_vector_in_float32(exact_process):
    """Alone, in a batch, and beside other callers: equal to rounding, at every size."""
    check(exact_process, FLOAT32_BOUND, examples=25)


def test_a_text_has_one_vector_in_the_default_engine(default_process):
    """The same, to the rounding of the engine that was chosen for its speed."""
    check(default_process, DEFAULT_BOUND, examples=25)
