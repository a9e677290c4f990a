"""Training in the console: from a file to what is served, and refusals in words."""

import json

from playwright.sync_api import Page, expect

from tests.console.conftest import fill, serious

_LONG_MS = 120_000


def write_pairs(path, count, wrong=0):
    """Write pairs under names that nobody knows without being told."""
    lines = [
        {"frage": f"what is number {at}?", "antwort": f"Number {at} is about topic {at % 7}."}
        for at in range(count)
    ]
    lines += [{"frage": "", "antwort": "Nothing."}] * wrong
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def open_form(page: Page) -> None:
    """Open the form of jobs, which is open by itself where there are none."""
    form = page.locator("details", has_text="Start a job from a file")
    expect(form).to_be_visible()
    if form.get_attribute("open") is None:
        form.locator("summary").first.click()


def begin(page: Page, path, collection="") -> None:
    page.get_by_label("Training file").set_input_files(path)
    page.get_by_label("Sizes").fill("32, 128")
    page.get_by_label("Name, part of the model's id").fill("console")
    page.get_by_label("Steps").fill("20")
    more = page.locator("details", has_text="More settings").last
    if more.get_attribute("open") is None:
        more.locator("summary").click()
    more.get_by_label("Columns").fill("frage = anchor\nantwort = positive\n")
    more.get_by_label("Batch size").fill("64")
    more.get_by_label("Learning rate").fill("0.005")
    more.get_by_label("Negatives to mine").fill("2")
    more.get_by_label("Also from the collection").fill(collection)
    page.get_by_role("button", name="Start the job").click()


def test_wrong_data_is_told_whole_and_nothing_entered_is_lost(page, process, pictures, tmp_path):
    """File, line and reason; what was entered stays, and another file goes on with it."""
    page.goto(f"{process.http}/#/training")
    open_form(page)
    begin(page, write_pairs(tmp_path / "wrong.jsonl", 40, wrong=1))
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("wrong.jsonl")
    expect(alert).to_contain_text("41")
    expect(page.get_by_label("Sizes")).to_have_value("32, 128")
    expect(page.get_by_label("Steps")).to_have_value("20")
    expect(page.get_by_label("Learning rate")).to_have_value("0.005")
    page.get_by_label("Columns").fill("frage\nantwort = positive")
    page.get_by_role("button", name="Start the job").click()
    expect(alert).to_contain_text("columns must map")
    page.screenshot(path=pictures / "job_form.png", full_page=True)
    assert serious(page) == []
    # A field that the browser itself refuses is shown, also in a fold that was closed.
    page.get_by_label("Batch size").fill("1")
    page.get_by_text("More settings").click()
    expect(page.get_by_label("Batch size")).not_to_be_visible()
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_label("Batch size")).to_be_focused()


def test_a_job_and_its_promotion_from_click_to_result(page, process, pictures, tmp_path):
    """A file is sent, trained from and compared; refused by a strict gate, served by a fair one."""
    fill(process, "library-1")
    page.goto(f"{process.http}/#/models")
    collection = page.get_by_role("region", name="library-1")
    collection.get_by_text("Point an alias at it").click()
    collection.get_by_label("Alias").fill("library")
    collection.get_by_role("button", name="Point it here").click()
    expect(collection.locator("dt:text-is('Aliases') + dd")).to_have_text("library")
    page.goto(f"{process.http}/#/training")
    open_form(page)
    begin(page, write_pairs(tmp_path / "pairs.jsonl", 400), collection="library")
    job = page.get_by_role("region", name="The job", exact=True)
    expect(job).to_contain_text("succeeded", timeout=_LONG_MS)
    for name, value in {
        "Sizes": "32, 128",
        "Batch size": "64",
        "Learning rate": "0.005",
        "Columns": "antwort = positive, frage = anchor",
        "Negatives mined": "up to 2 for each pair, also from the collection library",
    }.items():
        expect(job.locator(f"dt:text-is('{name}') + dd")).to_have_text(value)
    expect(page.get_by_role("img", name="oss").first).to_be_visible()
    expect(page.get_by_role("heading", name="Quality of each size")).to_be_visible()
    page.screenshot(path=pictures / "job.png", full_page=True)
    assert serious(page) == []

    page.get_by_role("link", name="compare it, and promote it").click()
    form = page.get_by_role("form", name="Promote")
    form.get_by_label("Fewest queries to judge by").fill("10000")
    form.get_by_label("The encoder's name to move").fill("")
    form.get_by_label("library, now library-1").check()
    form.get_by_role("button", name="Promote").click()
    promotion = page.get_by_role("region", name="The promotion")
    expect(promotion).to_contain_text("refused", timeout=_LONG_MS)
    expect(page.get_by_text("The gate refused it, and nothing was touched.")).to_be_visible()
    expect(page.locator(".alert li").first).to_contain_text("10000")
    page.screenshot(path=pictures / "refused.png", full_page=True)
    assert serious(page) == []

    page.go_back()
    form.get_by_label("Fewest queries to judge by").fill("1")
    form.get_by_label("Most that any served size may lose").fill("1")
    form.get_by_label("The encoder's name to move").fill("")
    form.get_by_label("library, now library-1").check()
    form.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("What was served before is kept current")).to_be_visible(
        timeout=_LONG_MS
    )
    page.screenshot(path=pictures / "promotion.png", full_page=True)
    assert serious(page) == []
    # It cannot be taken back: the button asks once more.
    page.get_by_role("button", name="Finish").click()
    page.get_by_role("button", name="Finish").click()
    expect(page.get_by_text("It is served.", exact=True)).to_be_visible()
