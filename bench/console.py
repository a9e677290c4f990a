"""How long the console's first view takes, and how much is sent for it.

A real `matryoshka up` on loopback with a collection, Debian's Chromium, a new session with an empty
cache each time. From the navigation's beginning to the first thing painted, and to the form that
can be used, which waits for the collections' names. The last line of stdout is one JSON object.

    python -m bench.console [--rounds N]
"""

import argparse
import asyncio
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import grpc
from playwright.async_api import Browser, async_playwright

from bench.report import cpu
from services.cli.processes import three_services
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc

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


async def measure(address: str, rounds: int) -> list[tuple[float, float, float]]:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("bench.console needs Debian's Chromium: make chromium")
    async with async_playwright() as playwright:
        # The browser's own sandbox cannot be had as root; the page is ours.
        browser = await playwright.chromium.launch(executable_path=chromium, chromium_sandbox=False)
        try:
            await view(browser, address)  # the browser itself is cold
            return [await view(browser, address) for _ in range(rounds)]
        finally:
            await browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
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
