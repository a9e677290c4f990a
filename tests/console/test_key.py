"""Keys in the console: asked for once, kept in the session, and refused in words."""

import hashlib
import json

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import serve


def write(path, **scopes):
    """A key for each name, with its scopes; None: all of them."""
    new = path.with_suffix(".new")
    lines = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}
        | ({"scopes": some} if some else {})
        for name, some in scopes.items()
    ]
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    write(path, everything=None, searcher=["search"])
    return path


@pytest.fixture(scope="module")
def guarded(keys, tmp_path_factory):
    """A `matryoshka up` that knows one key for everything, and one for searches only."""
    started = serve(tmp_path_factory.mktemp("guarded"), "up", MATRYOSHKA_UP_KEYS_FILE=str(keys))
    yield started
    assert started.stop() == 0


def enter(page: Page, key: str) -> None:
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()


def test_a_key_is_asked_for_and_kept_in_the_session_only(page, guarded):
    """Without one, and after a wrong one, the page asks; a right one is in no other place."""
    page.goto(guarded.http)
    expect(page.get_by_role("dialog")).to_be_visible()
    enter(page, "wrong")
    expect(page.get_by_role("alert").first).to_contain_text("key")
    enter(page, "everything")
    expect(page.get_by_text("There is nothing to search yet")).to_be_visible()
    page.reload()
    expect(page.get_by_text("There is nothing to search yet")).to_be_visible()
    assert page.evaluate("JSON.stringify(localStorage)").find("everything") < 0
    assert page.context.cookies() == []
    assert "everything" not in page.url
    other = page.context.new_page()
    other.goto(guarded.http)
    expect(other.get_by_role("dialog")).to_be_visible()


def test_a_key_that_expired_is_asked_for_again(page, guarded, keys):
    """Taken out of the keys file while the page is open, it is refused, and a new one goes on."""
    write(keys, everything=None, searcher=["search"], temporary=None)
    page.goto(guarded.http)
    expect(page.get_by_role("dialog")).to_be_visible()
    # The file is read again within seconds.
    for _ in range(40):
        enter(page, "temporary")
        page.wait_for_timeout(500)
        if page.get_by_role("dialog").count() == 0:
            break
    write(keys, everything=None, searcher=["search"])
    for _ in range(40):
        page.reload()
        page.wait_for_timeout(500)
        if page.get_by_role("dialog").count():
            break
    enter(page, "everything")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key_without_a_scope_is_told_which_one(page, guarded):
    """A key for searches sees the search; what it may not is said in a sentence with the scope."""
    page.goto(guarded.http)
    enter(page, "searcher")
    expect(page.get_by_text("There is nothing to search yet")).to_be_visible()
    page.get_by_role("link", name="Training").click()
    expect(page.get_by_role("alert").first).to_contain_text("train")
