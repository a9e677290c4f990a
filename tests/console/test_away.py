"""The console when a service is away."""

from playwright.sync_api import expect

from tests.conftest import serve


def test_a_service_that_is_down_is_named_and_tried_again(page, tmp_path):
    """The next call says that nobody answers; a button asks again, and so does the page."""
    process = serve(tmp_path, "up")
    page.goto(f"{process.http}/#/models")
    expect(page.get_by_role("alert")).to_have_count(0)
    process.stop()
    # Out of sight the page does not ask by itself: what is asked now, the button asks.
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.goto(f"{process.http}/#/search")
    expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    with page.expect_request("**/matryoshka.v1.*/*"):
        page.get_by_role("button", name="Try again").first.click()
    expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    page.evaluate("delete document.hidden")
    port = process.http.rpartition(":")[2]
    process.arguments[process.arguments.index("--port") + 1] = port
    process.start()
    try:
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_text("There is nothing to search yet")).to_be_visible()
    finally:
        assert process.stop() == 0
