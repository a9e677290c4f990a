"""Every page works for everyone: by keyboard, in light and dark, on a phone, empty or full."""

import pytest
from playwright.sync_api import Page, expect

from tests.console.conftest import PAGES, serious

PHONE = {"width": 390, "height": 844}


def settle(page: Page) -> None:
    """Wait until nothing is being loaded."""
    page.wait_for_load_state("networkidle")
    expect(page.get_by_text("Loading …")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page, process, pictures, name, theme):
    """Names, roles, contrast: of the full page, on a wide screen and on a phone, in both themes."""
    page.emulate_media(color_scheme=theme)
    page.goto(f"{process.http}/#/{name}")
    settle(page)
    assert serious(page) == []
    page.screenshot(path=pictures / f"{name}-{theme}.png", full_page=True)
    page.set_viewport_size(PHONE)
    assert serious(page) == []
    page.screenshot(path=pictures / f"{name}-{theme}-phone.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= PHONE["width"], "a phone would have to scroll sideways"


@pytest.mark.parametrize("name", PAGES)
def test_an_empty_page_says_what_to_do_first(page, empty_process, pictures, name):
    """Nothing was indexed, calibrated or trained: each page names the first step."""
    page.goto(f"{empty_process.http}/#/{name}")
    settle(page)
    expect(page.locator(".empty").first).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert serious(page) == []
    page.screenshot(path=pictures / f"{name}-empty.png", full_page=True)


def test_a_search_by_keyboard_alone(page, process):
    """Tab reaches the page's bar and form, Enter searches, and the focus can be seen."""
    page.goto(process.http)
    settle(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="To the page")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    query = page.get_by_label("Query")
    expect(query).to_be_focused()
    assert query.evaluate("one => getComputedStyle(one).outlineStyle") != "none"
    page.keyboard.type("rivers")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Exact search").get_by_role("listitem")).to_have_count(
        10
    )
