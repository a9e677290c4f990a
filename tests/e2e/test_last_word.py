"""A search whose last word a real cross-encoder has, in one process with everything else."""

import grpc
import pytest
import torch
from sentence_transformers import CrossEncoder as Oracle

from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2, router_pb2_grpc
from tests.conftest import serve
from tests.families import checkpoints
from tests.families import cross_encoder_checkpoints as pairs

QUERY = "what is the nested vector?"
TEXTS = ["the prefix of a vector", "question and answer", "the window of attention", "a nested one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small embedder and a small cross-encoder, of random weights."""
    root = tmp_path_factory.mktemp("last-word")
    torch.manual_seed(0)
    for name, write in (("embedder", checkpoints.gte_bert), ("judge", pairs.bge_reranker)):
        (root / name).mkdir()
        write(root / name)
    return root


def test_hits_have_the_scores_of_sentence_transformers(folder):
    """Loaded while serving, named by its alias; the hits' order is that of the oracle's scores."""
    process = serve(folder, "up", MATRYOSHKA_ENCODER_MODEL=str(folder / "embedder"))
    try:
        with grpc.insecure_channel(process.grpc) as channel:
            encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
            judge = str(folder / "judge")
            loaded = encoder.LoadModel(encoder_pb2.LoadModelRequest(source=judge)).model
            encoder.SetAlias(encoder_pb2.SetAliasRequest(alias="last-word", model=loaded.id))
            router = router_pb2_grpc.RouterServiceStub(channel)
            router.CreateCollection(
                router_pb2.CreateCollectionRequest(name="docs", model="default")
            )
            points = [router_pb2.Point(id=text, text=text) for text in TEXTS]
            upsert = router_pb2.UpsertRequest(collection="docs", points=points)
            assert [answer.num_points for answer in router.Upsert(iter([upsert]))] == [len(TEXTS)]
            found = router.Search(
                router_pb2.SearchRequest(
                    collection="docs", text=QUERY, limit=3,
                    cross_encoder=router_pb2.CrossEncoder(model="last-word"),
                )
            )  # fmt: skip
            assert (found.cross_encoder.model, found.cross_encoder.candidates) == (loaded.id, 4)
    finally:
        assert process.stop() == 0
    oracle = Oracle(judge, device="cpu")
    scores = oracle.predict([(QUERY, text) for text in TEXTS])
    expected = sorted(zip(TEXTS, scores, strict=True), key=lambda pair: -pair[1])[:3]
    assert [hit.id for hit in found.hits] == [text for text, _ in expected]
    assert [hit.score for hit in found.hits] == pytest.approx(
        [float(score) for _, score in expected], abs=1e-3
    )
