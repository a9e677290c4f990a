"""Two towers and pictures through the encoder's own way of a request."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.encoder.admission import Admission
from services.encoder.embed import Embedder, EmbedInput
from services.encoder.metrics import EncoderMetrics
from services.encoder.models import Models
from services.encoder.settings import EncoderSettings
from services.encoder.threads import Threads
from services.shared.errors import InvalidRequest
from services.shared.model import TextModel
from services.shared.vectors import truncate
from tests.families import checkpoints, picture_checkpoints
from tests.families.test_images import picture


@pytest.fixture
async def served(tmp_path):
    """An embedder of two models: "vdr" takes pictures, "asym" has two towers."""
    folders = {"vdr": picture_checkpoints.qwen3_vl, "asym": checkpoints.leaf_asym}
    for name, write in folders.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    settings = EncoderSettings(
        data_dir=tmp_path / "data", model=str(tmp_path / "vdr"), precision="float32", device="cpu"
    )
    metrics = EncoderMetrics(CollectorRegistry())
    models = Models(settings, metrics)
    await models.start()
    await models.load(str(tmp_path / "asym"), "asym")
    threads = Threads(1)
    embedder = Embedder(models, Admission(5.0, 60.0, 10**6, metrics), threads, settings, metrics)
    yield embedder, tmp_path
    await models.close()
    threads.close()


async def test_pictures_follow_texts(served):
    """Rows are texts, then pictures; each picture's tokens are counted."""
    embedder, folder = served
    model = TextModel(folder / "vdr", "float32", "cpu")
    files = [picture("PNG", 40, 30), picture("JPEG", 64, 64), picture("PNG", 40, 30)]
    answer = await embedder.embed(EmbedInput("vdr", ["a text"], [16], images=files))
    items = [*model.tokenize(["a text"]), *map(model.read_image, files)]
    np.testing.assert_allclose(answer.vectors[0][1], truncate(model.encode(items), 16), atol=1e-5)
    assert answer.num_tokens == [len(item) for item in items]
    # Two pictures of one size have the same tokens; kept vectors must not be mixed up.
    other = await embedder.embed(
        EmbedInput("vdr", [], [16], images=[picture("PNG", 40, 30, "L"), files[0]])
    )
    assert np.abs(other.vectors[0][1][0] - answer.vectors[0][1][1]).max() > 1e-3
    np.testing.assert_allclose(other.vectors[0][1][1], answer.vectors[0][1][1], atol=1e-6)


async def test_a_picture_that_cannot_be_read_fails_its_request_only(served):
    """In one sentence that names what would be accepted."""
    embedder, _ = served
    with pytest.raises(InvalidRequest, match="PNG, JPEG or WebP"):
        await embedder.embed(EmbedInput("vdr", ["a text"], images=[b"no picture"]))


async def test_two_towers_need_a_role(served):
    """A request must say it; the same text is another vector in the other role."""
    embedder, folder = served
    with pytest.raises(InvalidRequest, match="'query' or 'document'") as caught:
        await embedder.embed(EmbedInput("asym", ["a text"]))
    assert caught.value.param == "input_type"
    model = TextModel(folder / "asym", "float32", "cpu")
    for role in ("query", "document", "query"):
        answer = await embedder.embed(EmbedInput("asym", ["a text"], role=role))
        theirs = truncate(model.encode_texts(["a text"], role), model.full)
        np.testing.assert_allclose(answer.vectors[0][1], theirs, atol=1e-5)


async def test_each_role_has_its_own_longest_text(served):
    """What is too long for the query's tower may be short enough for the document's."""
    embedder, _ = served
    text = "the " * 140
    with pytest.raises(InvalidRequest, match="at most 128"):
        await embedder.embed(EmbedInput("asym", [text], role="query"))
    assert (await embedder.embed(EmbedInput("asym", [text], role="document"))).truncated == []


async def test_pictures_are_refused_by_models_of_text(served):
    """Before anything is read."""
    embedder, _ = served
    with pytest.raises(InvalidRequest, match="texts only"):
        await embedder.embed(EmbedInput("asym", [], role="query", images=[picture("PNG", 40, 30)]))
