"""How long the console's first view takes, and how much is sent for it.

A real `matryoshka up` on loopback with a collection, Debian's Chromium, a new session with an empty
cache each time. From the navigation's beginning to the first thing painted, and to the form that
can be used, which waits for the collections' names. The last line of stdout is one JSON object.

With --picture, documentation that lies on this machine is indexed and calibrated instead, and the
page of its plans drawn.

    python -m bench.console [--rounds N | --picture FILE]
"""

import argparse
import asyncio
import contextlib
import json
import platform
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from statistics import median

import grpc
from playwright.async_api import Browser, async_playwright

from bench.report import cpu
from services.cli.corpus import Document, read_corpus
from services.cli.processes import ServiceProcess, three_services
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc

_DOCUMENTS, _QUESTIONS, _BATCH = 10_000, 2000, 500
_PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
_SENT = (
    "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    ".reduce((sum, one) => sum + one.transferSize, 0)"
)


async def view(browser: Browser, address: str) -> tuple[float, float, float]:
    """Return the milliseconds to the first paint and to the form, and the bytes that were sent."""
    context = await browser.new_context()
    page = await context.new_page()
    begin_s = time.perf_counter()
    await page.goto(address, wait_until="commit")
    await page.get_by_label("Query").wait_for()
    usable_ms = (time.perf_counter() - begin_s) * 1000
    painted_ms, sent = await page.evaluate(_PAINTED), await page.evaluate(_SENT)
    await context.close()
    return painted_ms, usable_ms, sent


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("bench.console needs Debian's Chromium: make chromium")
    async with async_playwright() as playwright:
        # The browser's own sandbox cannot be had as root; the page is ours.
        browser = await playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False)
        try:
            yield browser
        finally:
            await browser.close()


async def measure(address: str, rounds: int) -> list[tuple[float, float, float]]:
    async with opened() as browser:
        await view(browser, address)  # the browser itself is cold
        return [await view(browser, address) for _ in range(rounds)]


def index(router: ServiceProcess, documents: Sequence[Document]) -> None:
    """Keep documents at several sizes, and calibrate with their titles as questions."""
    sizes = [pb.Size(dim=dim, quantization=pb.QUANTIZATION_TURBO4) for dim in (64, 128, 256)]
    with grpc.insecure_channel(router.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)
        stub.CreateCollection(
            pb.CreateCollectionRequest(name="docstrings", model="default", sizes=sizes)
        )
        batches = (
            pb.UpsertRequest(
                collection="docstrings",
                points=[
                    pb.Point(id=document.id, text=document.body)
                    for document in documents[begin : begin + _BATCH]
                ],
            )
            for begin in range(0, len(documents), _BATCH)
        )
        for answer in stub.Upsert(batches):
            print(f"{answer.total_points} written", flush=True)
        titles = [document.title for document in documents[:_QUESTIONS]]
        for _ in stub.Calibrate(pb.CalibrateRequest(collection="docstrings", texts=titles)):
            pass


async def draw(address: str, path: Path) -> None:
    async with opened() as browser:
        context = await browser.new_context(viewport={"width": 1200, "height": 760})
        page = await context.new_page()
        await page.goto(f"{address}/#/plan?collection=docstrings")
        await page.locator(".target").wait_for()
        await page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--picture", type=Path, help="draw the page of plans into this file")
    options = parser.parse_args()
    if options.picture:
        with tempfile.TemporaryDirectory() as folder, three_services(Path(folder)) as services:
            index(services["router"], read_corpus(None, _DOCUMENTS))
            asyncio.run(draw(services["router"].http, options.picture))
        return
    rounds = options.rounds
    print(f"{time.strftime('%Y-%m-%d')}, {cpu()}, Python {platform.python_version()}, loopback")
    with tempfile.TemporaryDirectory() as folder, three_services(Path(folder)) as services:
        router = services["router"]
        with grpc.insecure_channel(router.grpc) as channel:
            request = pb.CreateCollectionRequest(name="docs", model="default")
            pb_grpc.RouterServiceStub(channel).CreateCollection(request)
        seen = asyncio.run(measure(router.http, rounds))
    painted, usable, sent = (median(column) for column in zip(*seen, strict=True))
    slowest = max(one[1] for one in seen)
    print(f"first paint {painted:.0f} ms, form usable {usable:.0f} ms (slowest {slowest:.0f} ms), "
          f"{sent / 1000:.0f} kB sent; medians of {rounds}")  # fmt: skip
    print(json.dumps({
        "bench": "console", "rounds": rounds, "first_paint_ms": round(painted),
        "usable_ms": round(usable), "slowest_usable_ms": round(slowest), "bytes_sent": round(sent),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
