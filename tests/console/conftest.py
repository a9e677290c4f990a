"""What tests of the console share: Debian's Chromium, a real `matryoshka up`, and its pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.conftest import Process, serve

PAGES = ("search", "plan", "recall", "training", "models")
CHROMIUM = shutil.which("chromium")
# A busy machine is slow, not wrong.
_PATIENCE_MS = 30_000
_TOPICS = ("dolls", "rivers", "violins", "bread")


def fill(process: Process, name: str) -> None:
    """Make a collection of 400 texts, at 32 and 128 numbers, too."""
    with grpc.insecure_channel(process.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        sizes = [pb.Size(dim=32), pb.Size(dim=128, quantization=pb.QUANTIZATION_INT8)]
        router.CreateCollection(pb.CreateCollectionRequest(name=name, model="default", sizes=sizes))
        points = [
            pb.Point(id=f"{topic}-{at}", text=f"What number {at} says about {topic}.")
            for at in range(400)
            for topic in [_TOPICS[at % 4]]
        ]
        batch = pb.UpsertRequest(collection=name, points=points)
        assert [answer.total_points for answer in router.Upsert(iter([batch]))] == [400]


# Not for longer: while it is open, its loop runs, and no other test could run one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: make chromium")
    with sync_playwright() as playwright:
        # The browser's own sandbox cannot be had as root; pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        yield browser
        browser.close()


def serious(page: Page) -> list[str]:
    """Return what axe finds of serious or critical on a page, as it is now."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a session of its own; what it logs as an error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))
    yield page
    context.close()
    assert not mistakes


@pytest.fixture(scope="session")
def empty_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A `matryoshka up` with nothing in it."""
    started = serve(tmp_path_factory.mktemp("empty"), "up")
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A `matryoshka up` with the collection docs; all its searches are measured."""
    started = serve(
        tmp_path_factory.mktemp("console"),
        "up",
        MATRYOSHKA_ROUTER_SHADOW_SHARE="1",
        MATRYOSHKA_ROUTER_SHADOW_MAX_BUSY="1",
    )
    fill(started, "docs")
    yield started
    assert started.stop() == 0


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest) -> Path:
    """Where screenshots are kept, to be looked at; of each only the last."""
    folder = Path(request.config.rootpath) / "build" / "console"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
