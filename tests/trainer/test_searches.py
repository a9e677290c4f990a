"""What a collection's searches find for a job: asked once, kept, and mined from."""

import asyncio
import shutil
import threading
import time

import pytest

from services.shared.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from services.trainer.data import finds
from services.trainer.data.examples import read_split
from services.trainer.data.finds import Finds, chunk_path, read_finds, write_chunk
from services.trainer.data.pairs import Pair
from services.trainer.data.pictures import Picture
from services.trainer.data.questions import ask
from services.trainer.jobs import searches
from services.trainer.jobs.events import read_events
from services.trainer.jobs.hyperparameters import EarlyStopping, Wanted, fill
from services.trainer.jobs.rows import Job
from services.trainer.jobs.searches import Searches
from services.trainer.jobs.spec import (
    FOUND,
    REPORT,
    REPORT_PAGE,
    TRAINING,
    Mining,
    Result,
    Spec,
    result_path,
    spec_path,
)
from services.trainer.results.summary import Summary
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.mining import mine
from services.trainer.training.work import run_job
from tests.trainer.conftest import make_job, write_pairs
from tests.trainer.test_mining import unit

MINING = Mining(negatives=2, collection="library")
JOB = Job(id="job-1", base_model="", model_id="", hyperparameters="", tenant="acme")


class Router:
    """Finds two texts for each question; fails as it is told to, once for each error."""

    def __init__(self, *errors: Exception) -> None:
        self.asked: list[tuple[str, str, int, str | None]] = []
        self.found = "near all"
        self._errors = list(errors)

    async def find(self, name, tenant=None):
        return name if name == "library" else None

    async def search(self, collection, text, limit, tenant):
        self.asked.append((collection, text, limit, tenant))
        if self._errors:
            raise self._errors.pop()
        return [f"near {text}", self.found] if self.found else []


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
    await Searches(first, 3, 60.0).run(JOB, folder)
    assert sorted(first.asked) == sorted(("library", text, 32, "acme") for text in anchors)
    await Searches(done := Router(), 3, 60.0).run(JOB, folder)
    assert not done.asked
    chunk_path(folder / FOUND, 10).unlink()
    (folder / FOUND / "whole").unlink()  # as a killed service leaves it
    again = Router()
    await Searches(again, 3, 60.0).run(JOB, folder)
    assert {text for _, text, _, _ in again.asked} == set(anchors[10:20])
    found = read_finds(folder / FOUND, len(anchors))
    assert len(found.texts) == len(anchors) + 1
    for anchor, rows in zip(anchors, found.rows, strict=True):
        assert [found.texts[row] for row in rows] == [f"near {anchor}", "near all"]
    told = [event.step for event in read_events(folder, 0)[0] if event.phase == "mine"]
    assert told == [10, 20, len(anchors), 20]


async def test_a_router_that_is_busy_is_asked_again(folder, monkeypatch):
    """For as long as patience lasts; one that refuses the job ends it, with what it says."""
    monkeypatch.setattr(searches, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(searches, "_LONGEST_WAIT_S", 0.02)
    for kind in (Overloaded, Unavailable):
        monkeypatch.setattr(kind, "retry_after_s", None)
    busy = Router(*[Unavailable("gone")] * 3, Overloaded("busy"))
    await Searches(busy, 1, 60.0).run(JOB, folder)
    assert len(busy.asked) == len(anchors_of(folder)) + 4
    told = [event.message for event in read_events(folder, 0)[0]]
    assert "waits for the router: gone" in told
    shutil.rmtree(folder / FOUND)
    away = Router(*[Unavailable("gone")] * 1000)
    with pytest.raises(Unavailable, match="gone"):
        await Searches(away, 1, 0.2).run(JOB, folder)
    assert 2 < len(away.asked) < 30
    with pytest.raises(NotFound, match="no collection"):
        await Searches(Router(NotFound("no collection")), 4, 60.0).run(JOB, folder)
    assert not list((folder / FOUND).glob("*"))


async def test_what_is_refused_or_long_is_passed_over(folder):
    """The others are found all the same; and what is too long to be read is not taken."""
    strict = Router(InvalidRequest("text must be short"))
    await Searches(strict, 1, 60.0).run(JOB, folder)
    count = len(anchors_of(folder))
    rows = read_finds(folder / FOUND, count).rows
    assert [len(found) for found in rows] == [0] + [2] * (count - 1)
    shutil.rmtree(folder / FOUND)
    wordy = Router()
    wordy.found = "long " * 10_000
    await Searches(wordy, 1, 60.0).run(JOB, folder)
    assert {len(found) for found in read_finds(folder / FOUND, count).rows} == {1}


async def test_a_job_that_is_stopped_gets_nothing_afterwards(folder, monkeypatch):
    """Who cancels it waits until what was found is kept; what follows finds it."""
    writing, kept = threading.Event(), []

    def write_slowly(path, found):
        writing.set()
        time.sleep(0.3)
        write_chunk(path, found)
        kept.append(path)

    monkeypatch.setattr(searches, "write_chunk", write_slowly)
    running = asyncio.create_task(Searches(Router(), 4, 60.0).run(JOB, folder))
    await asyncio.to_thread(writing.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert kept
    assert kept[0].exists()
    before = [event.message for event in read_events(folder, 0)[0]]
    await asyncio.sleep(0.1)
    assert [event.message for event in read_events(folder, 0)[0]] == before


async def test_nothing_is_asked_where_nothing_is_wanted(folder):
    """Nor for pictures."""
    spec = Spec.read(spec_path(folder))
    for mining in (None, Mining(negatives=2)):
        spec.model_copy(update={"mining": mining}).write(spec_path(folder))
        await Searches(router := Router(), 4, 60.0).run(JOB, folder)
        assert not router.asked
    digest = "0" * 64
    picture = Picture(digest, folder / digest)
    pairs = [Pair(picture, f"b{i}") for i in range(4)] + [Pair("ask", "c"), Pair("more", "d")]
    write_pairs(folder / TRAINING, pairs)
    spec.model_copy(update={"mining": MINING}).write(spec_path(folder))
    await Searches(router := Router(), 4, 60.0).run(JOB, folder)
    assert {text for _, text, _, _ in router.asked} <= {"ask", "more"}


async def test_a_collection_must_be_there_and_hold_texts():
    """It is searched once, before anything is queued."""
    await Searches(router := Router(), 1, 60.0).check(MINING, "acme")
    assert router.asked == [("library", "a", 32, "acme")]
    with pytest.raises(InvalidRequest, match="there is no 'other'") as caught:
        await Searches(Router(), 1, 60.0).check(Mining(collection="other"), None)
    assert caught.value.param == "mine_negatives.collection"
    router = Router()
    router.found = ""
    with pytest.raises(InvalidRequest, match="must hold points with texts"):
        await Searches(router, 1, 60.0).check(MINING, None)
    with pytest.raises(InvalidRequest, match="cannot be searched: no such model") as caught:
        await Searches(Router(InvalidRequest("no such model", "x")), 1, 60.0).check(MINING, None)
    assert caught.value.param == "mine_negatives.collection"
    with pytest.raises(ServiceError, match="MATRYOSHKA_TRAINER_ROUTER_API_KEY") as refused:
        await Searches(Router(Unauthenticated("invalid key")), 1, 60.0).check(MINING, None)
    assert refused.value.http_status == 500  # the caller's own key is right


def test_the_best_of_each_anchor_are_kept_first():
    """Where there are more texts than may be looked at."""
    found = Finds(("a", "b", "c", "d", "e"), ((0, 1, 2), (3,), (0, 4)))
    assert found.best(3) == Finds(("a", "d", "b"), ((0, 2), (1,), (0,)))
    assert found.best(9).texts == ("a", "d", "b", "e", "c")


@pytest.mark.parametrize("method", ["adaptor", "full"])
def test_a_job_learns_from_what_was_found(folder, tiny_pairs, method):
    """And asks what it asked before: no text of the collection among it, also to stop early."""
    spec = Spec.read(spec_path(folder))
    wanted = Wanted(
        method=method, steps=2, batch_size=8, early_stopping=EarlyStopping(dim=16, every_steps=1)
    )
    hyper = fill(wanted, 32, len(anchors_of(folder)))
    spec.model_copy(update={"hyperparameters": hyper}).write(spec_path(folder))
    spec = Spec.read(spec_path(folder))
    data = read_split(folder / TRAINING, folder / "none", "pairs", hyper.seed)
    held_out = data.held_out[0]
    anchors = anchors_of(folder)
    near = ["red house", held_out.anchor, held_out.positive, "slow bird sees"]
    (folder / FOUND).mkdir()
    write_chunk(chunk_path(folder / FOUND, 0), [near for _ in anchors])
    run_job(folder, Interrupt())
    result = Result.read(result_path(folder))
    assert result.quality.num_documents == len(ask(data).documents)
    assert Summary.read(folder / REPORT).mining == MINING
    assert "library" in (folder / REPORT_PAGE).read_text()
    told = [event.message for event in read_events(folder, 0)[0] if event.phase == "mine"]
    assert "of 2 texts found in the collection were taken" in told[-1]  # none that is held out


def test_texts_that_count_as_the_same_are_one(tmp_path):
    """For each anchor that found either; and those that are documents already are left out."""
    write_chunk(chunk_path(tmp_path, 0), [["Near", "far", "Answer"], ["near ", "far"]])
    found = read_finds(tmp_path, 2).without(["ANSWER"])
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
        lambda _: None, found, vectors_FD,
    )  # fmt: skip
    assert mined[0].negatives == ("given", "near", "second", "far")
    # Of the second anchor "far" scores as high as its answer.
    assert mined[1].negatives == ("of another", "too", "answer")
    assert set(mined[2].negatives) == {"Given", "near", "second"}
