"""A model of texts and pictures (Qwen3-VL's kind) reads both as sentence-transformers does.

The oracle is sentence-transformers' own `encode` of the picture. Its modules come from our loader:
without torchvision the library cannot put the processor together by itself (`processor.py`).
"""

import base64
import io
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from services.shared.errors import InvalidRequest
from services.shared.loading import load_modules
from services.shared.model import TextModel
from services.trainer.jobs.bases import locate_base
from services.trainer.results.layout import takes_pictures
from tests.conftest import serve
from tests.families import checkpoints, picture_checkpoints

TEXTS = ["a", "what is the search query?", "the number of words " * 12, "over and over " * 400]
PICTURES = [("PNG", 40, 30), ("JPEG", 64, 64), ("WEBP", 17, 90), ("PNG", 300, 200)]


def picture(kind, width, height, mode="RGB"):
    """A file of random pixels."""
    rng = np.random.default_rng(width)
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "vdr"
    folder.mkdir()
    picture_checkpoints.qwen3_vl(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return TextModel(folder, "float32", "cpu")


@pytest.fixture(scope="module")
def oracle(folder):
    return load_modules(folder, "cpu")


def test_texts_are_those_of_sentence_transformers(model, oracle):
    """Through the chat template, with the default prompt or the query's, over-long ones cut."""
    assert model.engine == "padded float32"
    np.testing.assert_allclose(model.encode_texts(TEXTS), oracle.encode(TEXTS), atol=1e-5)
    queries = model.encode_texts(TEXTS, "query")
    np.testing.assert_allclose(queries, oracle.encode_query(TEXTS), atol=1e-5)
    assert not np.allclose(queries, model.encode_texts(TEXTS), atol=1e-3)


def test_pictures_are_those_of_sentence_transformers(model, oracle):
    """Every format, in company of texts and other pictures, number for number."""
    assert model.takes_images
    files = [picture(*each) for each in PICTURES]
    items = [model.read_image(data) for data in files]
    vectors_BD = model.encode([*model.tokenize(TEXTS[:2]), *items])
    theirs = oracle.encode([Image.open(io.BytesIO(data)).convert("RGB") for data in files])
    np.testing.assert_allclose(vectors_BD[2:], theirs, atol=1e-5)
    np.testing.assert_allclose(vectors_BD[:2], model.encode_texts(TEXTS[:2]), atol=1e-5)
    # All different, so that a picture that is not looked at would show.
    assert (vectors_BD @ vectors_BD.T - np.eye(len(vectors_BD))).max() < 0.999


def test_pictures_over_http_are_those_of_sentence_transformers(folder, oracle, tmp_path):
    """A running encoder gives each picture, among texts, the library's vector, in its place."""
    files = [picture(*each) for each in PICTURES[:2]]
    plain, url = (base64.b64encode(data).decode() for data in files)
    images = [{"image": plain}, {"image": f"data:image/jpeg;base64,{url}"}]
    body = {"model": "default", "input": [images[0], TEXTS[0], images[1], TEXTS[1]]}
    process = serve(
        tmp_path, "serve", "encoder",
        MATRYOSHKA_ENCODER_MODEL=str(folder), MATRYOSHKA_ENCODER_DEVICE="cpu",
        MATRYOSHKA_ENCODER_PRECISION="float32",
    )  # fmt: skip
    try:
        answer = httpx.post(f"{process.http}/v1/embeddings", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["data"]
    finally:
        process.stop()
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    theirs = oracle.encode([pictures[0], TEXTS[0], pictures[1], TEXTS[1]])
    np.testing.assert_allclose([row["embedding"] for row in rows], theirs, atol=1e-5)


def test_the_full_width_is_served_whatever_the_folder_cuts_to(model):
    """Its default size is for callers of the library; ours say which sizes they want."""
    assert model.full == checkpoints.WIDTH


def test_a_picture_is_as_long_as_its_tokens(model):
    """Budgets in tokens hold for pictures too: larger ones count for more."""
    small, large = (model.read_image(picture("PNG", side, side)) for side in (16, 64))
    assert len(small) == len(list(small)) < len(large)
    assert len(large) - len(small) == (64 * 64 - 16 * 16) // (4 * 2) ** 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_any_colours_are_read(model, mode):
    """Grey, palette, transparent and black-and-white pictures become three colours."""
    assert len(model.read_image(picture("PNG", 32, 32, mode))) > 16


def huge_png(width, height):
    """A PNG that says it is huge; a few bytes that would decode to gigabytes."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def moving(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "whole PNG, JPEG or WebP"),
        (b"not a picture at all", "whole PNG, JPEG or WebP"),
        (picture("PNG", 40, 30)[:-200], "whole PNG, JPEG or WebP"),
        (picture("JPEG", 40, 30)[:300], "whole PNG, JPEG or WebP"),
        (picture("WEBP", 40, 30)[:-20], "whole PNG, JPEG or WebP"),
        (picture("BMP", 40, 30), "whole PNG, JPEG or WebP"),
        (picture("GIF", 40, 30), "whole PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "whole PNG, JPEG or WebP"),
        (huge_png(7_000, 7_000), "at most 40000000 pixels"),
        (huge_png(12_000, 12_000), "at most 40000000 pixels"),
        (huge_png(60_000, 60_000), "at most 40000000 pixels"),
        (moving("PNG"), "must not move"),
        (moving("WEBP"), "must not move"),
        (picture("PNG", 900, 3), "model's processor"),
    ],
)
def test_what_is_not_one_picture_is_refused(model, data, message):
    """Each in one sentence, before any forward pass, and never by a crash of a decoder."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        model.read_image(data)
    assert caught.value.param == "images"


def test_a_picture_of_too_many_tokens_is_refused(folder):
    """A picture is not cut: it is refused, with what would be accepted."""
    model = TextModel(folder, "float32", "cpu")
    model.towers["none"].max_tokens = 30
    with pytest.raises(InvalidRequest, match="at most 30 tokens"):
        model.read_image(picture("PNG", 64, 64))


def test_clip_is_served_for_texts_and_not_trained(tmp_path):
    """A network for pictures alone is none that reads them as tokens; who trains is told."""
    folder = tmp_path / "clip"
    folder.mkdir()
    picture_checkpoints.clip(folder)
    model = TextModel(folder, "float32", "cpu")
    assert not model.takes_images
    assert not takes_pictures(folder)
    texts = ["a red kite", "over the sea " * 20]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(model.encode_texts(texts), theirs, atol=1e-5)
    with pytest.raises(InvalidRequest, match="with one network, as the kind of Qwen3-VL") as caught:
        locate_base(str(folder))
    assert caught.value.param == "base_model"


def test_the_trainer_takes_a_base_that_reads_pictures_as_tokens(folder):
    """Told from its files."""
    assert takes_pictures(locate_base(str(folder)))
