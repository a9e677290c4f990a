"""Plans in the console: a calibration from the click to what it gives to choose from."""

from playwright.sync_api import expect

from tests.console.conftest import fill, serious


def test_a_calibration_from_click_to_result(page, process, pictures):
    """Begun by a click, watched, drawn; another target is tried by hand and by keys."""
    fill(process, "measured")
    page.goto(f"{process.http}/#/plan?collection=measured")
    expect(page.get_by_text("This collection is not calibrated yet")).to_be_visible()
    page.get_by_role("button", name="Calibrate").click()
    target = page.locator(".target")
    expect(target).to_be_visible(timeout=120_000)
    expect(page.get_by_text("Documents stood in for queries")).to_be_visible()
    expect(target).to_have_attribute("aria-valuenow", "0.95")
    card = page.get_by_role("region", name="The plan of this target")
    expect(card).to_contain_text("0.950")

    target.focus()
    page.keyboard.press("End")
    expect(target).to_have_attribute("aria-valuenow", "1")
    expect(card).to_contain_text("exact")

    box = target.locator(".handle").bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 8, box["y"] + 60, steps=4)
    page.mouse.up()
    assert float(target.get_attribute("aria-valuenow")) < 1
    page.get_by_label("Cheapest in").first.select_option("memory")
    expect(page.get_by_text("Memory for each point").first).to_be_visible()
    page.screenshot(path=pictures / "plan.png", full_page=True)
    assert serious(page) == []


def test_a_calibration_can_be_stopped(page, process):
    """Ended by a click, it leaves the collection as it was."""
    fill(process, "stopped")
    page.goto(f"{process.http}/#/plan?collection=stopped")
    page.get_by_role("button", name="Calibrate").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("This collection is not calibrated yet")).to_be_visible()
