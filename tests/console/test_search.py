"""The console's search: one query, three ways, and what each costs."""

import json
import os
import subprocess
import sys

from playwright.sync_api import Page, expect

from tests.console.conftest import serious


def ask(page: Page, text: str) -> None:
    page.get_by_label("Query").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()


def test_a_query_is_answered_three_ways(page, process, pictures):
    """Short size, plan and exact search stand side by side, ten hits each; nobody else is asked."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(process.http)
    ask(page, "wooden dolls")
    exact = page.get_by_role("region", name="Exact search")
    expect(exact.get_by_role("listitem")).to_have_count(10)
    expect(page.get_by_role("listitem")).to_have_count(30)
    expect(page.locator(".rankings path").first).to_be_visible()
    stages = page.get_by_role("region", name="What each stage did")
    expect(stages.get_by_role("row")).to_have_count(3)
    page.get_by_text("This search with curl").click()
    expect(page.get_by_text('"text": "wooden dolls"').first).to_be_visible()
    page.screenshot(path=pictures / "search.png", full_page=True)
    assert serious(page) == []
    assert len(asked) > 5
    assert all(url.startswith(process.http) for url in asked)


def test_what_is_to_be_copied_runs_as_it_is(page, process, tmp_path):
    """The command and the Python code of a search give the hits that the page shows."""
    page.goto(process.http)
    ask(page, "it's about the river's source")
    plan = page.locator(".rankings section").nth(1).get_by_role("listitem").locator("code")
    expect(plan).to_have_count(10)
    shown = plan.all_inner_texts()
    command, code = (pre.text_content() for pre in page.locator("details pre").all())
    environment = os.environ | {"MATRYOSHKA_API_KEY": "none is asked for"}
    found = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=True, env=environment
    )
    assert [hit["id"] for hit in json.loads(found.stdout)["hits"]] == shown
    path = tmp_path / "search.py"
    path.write_text(code)
    found = subprocess.run(
        [sys.executable, path], capture_output=True, check=True, env=environment, text=True
    )
    assert [line.split()[1] for line in found.stdout.splitlines()] == shown


def test_a_recall_is_asked_for_and_kept_by_exact_search_where_nothing_was_measured(page, process):
    """The slider's target goes into the search and into the address, which can be sent on."""
    page.goto(process.http)
    ask(page, "violins")
    page.get_by_label("Say the recall").check()
    expect(page.get_by_text("Recall target: 0.950")).to_be_visible()
    slider = page.get_by_label("Recall target")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("Recall target: 0.955")).to_be_visible()
    expect(page.get_by_text("found 10 of the 10 hits")).to_be_visible()
    assert "target=0.955" in page.url
    page.reload()
    expect(page.get_by_text("Recall target: 0.955")).to_be_visible()
    expect(page.get_by_text("found 10 of the 10 hits")).to_be_visible()
