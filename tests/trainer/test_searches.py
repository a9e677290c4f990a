"""What a collection's searches find for a job: asked once, kept, and mined from."""

import json

import pytest

from services.shared.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from services.trainer.data import finds
from services.trainer.data.finds import Finds, chunk_path, read_finds, write_chunk
from services.trainer.data.pairs import Pair
from services.trainer.data.pictures import Picture
from services.trainer.jobs import searches
from services.trainer.jobs.events import read_events
from services.trainer.jobs.rows import Job
from services.trainer.jobs.searches import Searches
from services.trainer.jobs.spec import FOUND, TRAINING, Mining, Spec, spec_path
from services.trainer.training.mining import mine
from tests.trainer.conftest import make_job, write_pairs
from tests.trainer.test_mining import unit

MINING = Mining(negatives=2, collection="library")
JOB = Job(id="job-1", base_model="", model_id="", hyperparameters="", tenant="acme")


class Router:
    """Finds two texts for each question; fails as it is told to, once for each error."""

    def __init__(self, *errors: Exception) -> None:
        self.asked: list[tuple[str, str, int, str | None]] = []
        self._errors = list(errors)

    async def find(self, name, tenant=None):
        return name if name == "library" else None

    async def search(self, collection, text, limit, tenant):
        self.asked.append((collection, text, limit, tenant))
        if self._errors:
            raise self._errors.pop()
        return [f"near {text}", "near all"]


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_pairs):
    made = make_job(tmp_path / "job", tiny_model, tiny_pairs, method="adaptor", steps=2)
    spec = Spec.read(spec_path(made))
    spec.model_copy(update={"mining": MINING}).write(spec_path(made))
    return made


def anchors_of(folder):
    """As the job will see them: without those that are held out."""
    spec = Spec.read(spec_path(folder))
    return searches._anchors(folder, spec)


async def test_each_anchor_is_searched_for_once(folder, monkeypatch):
    """Also over restarts: what is kept is not asked again; and whose job it is, is told."""
    monkeypatch.setattr(finds, "CHUNK", 10)
    monkeypatch.setattr(searches, "CHUNK", 10)
    anchors = anchors_of(folder)
    assert 20 < len(anchors) <= 32
    first = Router()
    await Searches(first, 3).run(JOB, folder)
    assert sorted(first.asked) == sorted(("library", text, 32, "acme") for text in anchors)
    chunk_path(folder / FOUND, 10).unlink()
    again = Router()
    await Searches(again, 3).run(JOB, folder)
    assert {text for _, text, _, _ in again.asked} == set(anchors[10:20])
    found = read_finds(folder / FOUND, len(anchors))
    assert len(found.texts) == len(anchors) + 1
    for anchor, rows in zip(anchors, found.rows, strict=True):
        assert [found.texts[row] for row in rows] == [f"near {anchor}", "near all"]
    told = [event.step for event in read_events(folder, 0)[0] if event.phase == "mine"]
    assert told == [10, 20, len(anchors), 20]


async def test_a_router_that_is_busy_is_asked_again(folder, monkeypatch):
    """And one that refuses ends it, with what it says."""
    monkeypatch.setattr(searches, "_WAITS_S", (0.01, 0.01))
    busy = Router(Overloaded("busy"), Unavailable("gone"))
    await Searches(busy, 4).run(JOB, folder)
    assert len(busy.asked) == len(anchors_of(folder)) + 2
    chunk_path(folder / FOUND, 0).unlink()
    away = Router(*[Unavailable("gone")] * 100)
    with pytest.raises(Unavailable, match="gone"):
        await Searches(away, 1).run(JOB, folder)
    assert len(away.asked) == 3
    with pytest.raises(NotFound, match="no collection"):
        await Searches(Router(NotFound("no collection")), 4).run(JOB, folder)
    assert not list((folder / FOUND).glob("*"))


async def test_nothing_is_asked_where_nothing_is_wanted(folder):
    """Nor for pictures."""
    spec = Spec.read(spec_path(folder))
    for mining in (None, Mining(negatives=2)):
        spec.model_copy(update={"mining": mining}).write(spec_path(folder))
        await Searches(router := Router(), 4).run(JOB, folder)
        assert not router.asked
    digest = "0" * 64
    picture = Picture(digest, folder / digest)
    pairs = [Pair(picture, f"b{i}") for i in range(4)] + [Pair("ask", "c"), Pair("more", "d")]
    write_pairs(folder / TRAINING, pairs)
    spec.model_copy(update={"mining": MINING}).write(spec_path(folder))
    await Searches(router := Router(), 4).run(JOB, folder)
    assert {text for _, text, _, _ in router.asked} <= {"ask", "more"}


async def test_a_collection_must_be_there():
    await Searches(Router(), 1).check("library", None)
    with pytest.raises(InvalidRequest, match="'other'") as caught:
        await Searches(Router(), 1).check("other", None)
    assert caught.value.param == "mine_negatives.collection"


def test_texts_that_count_as_the_same_are_one(tmp_path):
    """For each anchor that found either; and those that are documents already are left out."""
    write_chunk(tmp_path / "f" / "000000000.json", [["Near", "far", "Answer"], ["near ", "far"]])
    assert json.loads((tmp_path / "f" / "000000000.json").read_text())["rows"]
    found = read_finds(tmp_path / "f", 2).without(["ANSWER"])
    assert found == Finds(("Near", "far"), ((0, 1), (0, 1)))


def test_what_was_found_is_mined_beside_the_positives(tmp_path):
    """By the base's own scores: below the margin, and no text that the pair knows."""
    pairs = [Pair("ask", "answer", ("given",)), Pair("other", "second"), Pair("ask", "too")]
    documents = ["held", "answer", "given", "second", "too"]
    anchors_AD = unit([[1, 0], [0, 1]])
    documents_ND = unit([[1, 0], [10, 1], [1, 1], [1, 3], [9, 1]])
    texts = ("as near as an answer", "near", "Given", "ask", "far", "of another")
    vectors_FD = unit([[20, 1], [2, 1], [2, 1], [2, 1], [1, 4], [3, 1]])
    found = Finds(texts, ((0, 1, 2, 3, 4), (4, 5)))
    mined = mine(
        pairs, anchors_AD, documents, documents_ND, Mining(negatives=3), tmp_path,
        found=found, found_FD=vectors_FD,
    )  # fmt: skip
    assert mined[0].negatives == ("given", "near", "second", "far")
    # Of the second anchor "far" scores as high as its answer.
    assert mined[1].negatives == ("of another", "too", "answer")
    assert set(mined[2].negatives) == {"Given", "near", "second"}
