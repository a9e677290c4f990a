"""The page itself: current, small, closed to other origins, and there without a key."""

import hashlib
import re
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
FILES = ("/", "/console/app.js", "/console/app.css", "/console/icon.svg")


def test_what_is_in_the_package_is_built_from_these_sources():
    """The digest in the page is that of console/src and of the protos: `make console` was run."""
    folder = ROOT / "console"
    found = [
        *(f"src/{path.relative_to(folder / 'src')}" for path in (folder / "src").rglob("*.*")),
        *(f"../protos/{path.name}" for path in (ROOT / "protos").iterdir()),
        "build.mjs", "package.json", "package-lock.json",
    ]  # fmt: skip
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    page = (ROOT / "services" / "router" / "static" / "index.html").read_text()
    built_from = re.search(r'name="sources" content="(\w+)"', page)
    assert built_from, "the page does not say what it was built from"
    assert built_from[1] == digest.hexdigest(), "run `make console`, and commit what it writes"


def test_the_first_view_is_small(process):
    """Under 300 kB are sent: all that is fetched before the first call, packed as browsers ask."""
    with httpx.Client(base_url=process.http) as client:
        answers = [client.get(path) for path in FILES]
    assert all(answer.status_code == 200 for answer in answers)
    assert all(answer.headers["content-encoding"] == "gzip" for answer in answers)
    assert sum(answer.num_bytes_downloaded for answer in answers) < 300_000


@pytest.mark.parametrize("path", FILES)
def test_nothing_but_its_own_origin(process, path):
    """Scripts, styles and calls come from the page's own address only, and nobody may frame it."""
    answer = httpx.get(process.http + path)
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_has_not_changed_is_not_sent_again(process):
    """The second request, with what the first one said, gets no body."""
    first = httpx.get(process.http + "/console/app.js")
    again = httpx.get(
        process.http + "/console/app.js", headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["", "..%2fconsole.py", "none.js", "%2e%2e/service.py"])
def test_no_other_file_is_served(process, name):
    """Only the page's own files have an address."""
    assert httpx.get(f"{process.http}/console/{name}").status_code == 404
