"""The console: a page and its files, the same for everyone and without a secret in them.

What it shows it asks of the services, at its own address, with the key that its user enters.
`make console` builds the files from `console/`.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from services.shared.http import Page

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Nothing but the page's own files, nothing inline, and no other address.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Asked again each time, and not sent again if it is the same.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


@dataclass(frozen=True, slots=True)
class _File:
    media_type: str
    content: bytes
    packed: bytes
    etag: str


def console_pages() -> list[Page]:
    """Return the page at "/", and its files."""
    files = {path.name: _read(path) for path in _FOLDER.iterdir()}

    def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        return _answer(request, found) if found else Response(status_code=404)

    return [Page("/", index), Page("/console/{name}", file)]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return _File(_TYPES[path.suffix], content, gzip.compress(content, mtime=0), etag)


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.content, headers=headers, media_type=file.media_type)
    headers["content-encoding"] = "gzip"
    return Response(file.packed, headers=headers, media_type=file.media_type)
