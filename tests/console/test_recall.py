"""Recall in the console: live searches, what they lost, and who may see their texts."""

import grpc
from playwright.sync_api import expect

from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.console.conftest import fill, serious

BAD = pb.Plan(stages=[pb.Stage(dim=32, candidates=10), pb.Stage(dim=384)])


def test_what_live_searches_lose_is_shown_with_the_searches(page, process, pictures):
    """By slice, worst first, with what lost it, over time; a query leads to the search page."""
    fill(process, "watched")
    with grpc.insecure_channel(process.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        for at in range(12):
            for name, plan in (("shallow", BAD), ("whole", None)):
                text = f"the number of rivers {at}"
                asked = pb.SearchRequest(collection="watched", text=text, slice=name, plan=plan)
                router.Search(asked)
    page.goto(f"{process.http}/#/recall?collection=watched")
    table = page.get_by_role("region", name="Live searches by slice, the worst first")
    expect(table.get_by_role("row")).to_have_count(3)
    expect(table.get_by_role("row").nth(1)).to_contain_text("shallow")
    expect(page.get_by_role("img", name="Recall of the slice shallow over time")).to_be_visible()
    lost = page.get_by_role("region", name="The last searches of the slice shallow")
    expect(lost).to_be_visible()
    page.screenshot(path=pictures / "recall.png", full_page=True)
    assert serious(page) == []
    query = lost.get_by_role("link").first
    text = query.inner_text()
    query.click()
    expect(page.get_by_label("Query")).to_have_value(text)


def test_what_the_console_itself_asks_is_not_watched(page, process):
    """A search that is looked at, three ways at once, does not count among the live ones."""
    fill(process, "looked-at")
    page.goto(f"{process.http}/#/search?collection=looked-at&query=violins")
    expect(page.get_by_role("listitem")).to_have_count(30)
    page.goto(f"{process.http}/#/recall?collection=looked-at")
    expect(page.get_by_text("No search was seen yet")).to_be_visible()


def test_many_slices_and_many_collections_are_shown_in_parts(page, process):
    """Of sixty slices ten are there at a time; a collection among thirty is found by its name."""
    fill(process, "many")
    with grpc.insecure_channel(process.grpc) as channel:
        router = pb_grpc.RouterServiceStub(channel)
        for at in range(60):
            router.Search(pb.SearchRequest(collection="many", text="rivers", slice=f"s{at}"))
        for at in range(30):
            router.CreateCollection(pb.CreateCollectionRequest(name=f"few-{at}", model="default"))
    try:
        page.goto(f"{process.http}/#/recall?collection=many")
        table = page.get_by_role("region", name="Live searches by slice, the worst first")
        expect(table.get_by_role("row")).to_have_count(11)
        expect(table).to_contain_text("1 to 10 of 60")
        table.get_by_role("button", name="Later").click()
        expect(table).to_contain_text("11 to 20 of 60")

        page.goto(f"{process.http}/#/models")
        page.get_by_label("Find a collection").fill("few-29")
        expect(page.get_by_role("region", name="few-29")).to_be_visible()
        expect(page.get_by_role("region", name="few-28")).to_have_count(0)
    finally:
        with grpc.insecure_channel(process.grpc) as channel:
            router = pb_grpc.RouterServiceStub(channel)
            for at in range(30):
                router.DeleteCollection(pb.DeleteCollectionRequest(name=f"few-{at}"))
