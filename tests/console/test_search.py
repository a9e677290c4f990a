"""The console's search: one query, three ways, and what each costs."""

from playwright.sync_api import Page, expect


def ask(page: Page, text: str) -> None:
    page.get_by_label("Query").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()


def test_a_query_is_answered_three_ways(page, process, pictures):
    """Short size, plan and exact search stand side by side, ten hits each, with times and code."""
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
