"""The answer's rows stand where the caller's inputs stood, in every format."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest

from services.encoder.embed import Embedded, EmbedInput
from services.encoder.openai_answer import write_answer
from services.encoder.openai_body import EmbeddingsRequest


def answer(vectors, places=None, encoding_format="float", truncated=(), dtype="float32", count=3):
    """What is written for vectors of several sizes, with the place of each row."""
    model = SimpleNamespace(id="m", text_model=SimpleNamespace(space_id="s"))
    embedded = Embedded(model, vectors, dtype, [1] * count, list(truncated))
    several = len(vectors) > 1
    request = EmbeddingsRequest(EmbedInput("m", []), encoding_format, places, several)
    return json.loads(write_answer(embedded, request))


def test_images_between_texts_come_back_between_them():
    """The embedder has texts first; the caller gets his own order, cut rows too."""
    # Input: text, image, text; the embedder's rows: text 0, text 2, image 1.
    rows = np.float32([[0.0], [2.0], [1.0]])
    both = [(1, rows), (2, np.repeat(rows, 2, axis=1))]
    said = answer(both, places=[0, 2, 1], truncated=[1])
    assert [row["index"] for row in said["data"]] == [0, 1, 2]
    assert [row["embedding"] for row in said["data"]] == [[0.0], [1.0], [2.0]]
    assert [row["embeddings"]["2"][0] for row in said["data"]] == [0.0, 1.0, 2.0]
    assert said["matryoshka"]["truncated"] == [2]
    said = answer(both[:1], places=[0, 2, 1], encoding_format="base64")
    decoded = [base64.b64decode(row["embedding"]) for row in said["data"]]
    assert decoded == [np.float32([number]).tobytes() for number in (0, 1, 2)]


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_numbers_are_written_exactly(dtype):
    """A reader gets the very number that was stored, the shortest way to write it."""
    stored = np.array([[0.1, -0.2, 3e-9]]) if dtype == "float32" else np.array([[100, 0, 7]])
    stored = stored.astype(dtype)
    (row,) = answer([(3, stored)], dtype=dtype, count=1)["data"]
    assert (np.array(row["embedding"]).astype(dtype) == stored[0]).all()
    assert row["embedding"] == ([0.1, -0.2, 3e-9] if dtype == "float32" else [100, 0, 7])


def test_rows_need_not_lie_together():
    """A view of other memory is written as its own numbers."""
    stored = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    for encoding_format in ("float", "base64"):
        said = answer([(3, stored)], encoding_format=encoding_format, count=2)["data"]
        rows = [row["embedding"] for row in said]
        if encoding_format == "base64":
            rows = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in rows]
        assert rows == [[0, 2, 4], [6, 8, 10]]


@pytest.mark.parametrize(
    ("dtype", "encoding_format", "warns"),
    [("uint8", "base64", True), ("uint8", "float", False), ("float32", "base64", False)],
)
def test_bytes_that_an_sdk_would_take_for_floats_come_with_a_warning(dtype, encoding_format, warns):
    """OpenAI's SDK asks for base64 unless told, and decodes whatever comes as float32."""
    said = answer([(4, np.ones((1, 4), dtype))], None, encoding_format, (), dtype, 1)
    assert bool(said["matryoshka"]["warnings"]) == warns
