"""OpenAI's `/v1/files`, for whichever service owns it in a process.

Source: openai/openai-openapi, `OpenAIFile` and `CreateFileRequest`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from services.shared.auth import Scope, caller
from services.shared.bodies import Body
from services.shared.errors import InvalidRequest, TooSlow
from services.shared.files import File, Files
from services.shared.multipart import Form, read_form
from services.shared.paging import Page, read_paging, write_page

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_MAX_FILENAME_CHARS = 255
_MAX_LISTED = 10_000
_EXPIRES_ANCHOR = "expires_after[anchor]"
_EXPIRES_SECONDS = "expires_after[seconds]"
_FIELDS = ("purpose", _EXPIRES_ANCHOR, _EXPIRES_SECONDS)
OPEN_TO_TENANTS = frozenset(
    {
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/{file_id}",
        "DELETE /v1/files/{file_id}",
        "GET /v1/files/{file_id}/content",
    }
)
"""Each asks `caller()` whose files it may touch."""
SCOPES = dict.fromkeys(OPEN_TO_TENANTS, Scope.WRITE | Scope.TRAIN)
"""Files go into vector stores, and into training."""
_MIN_EXPIRES_S, _MAX_EXPIRES_S = 3_600, 2_592_000


class FilesHttp:
    """The routes.

    Args:
        files: gives the files, once the service has started.
        max_upload_s: time for a file to arrive.
        on_delete: told of a file that is gone, before its bytes go.
    """

    def __init__(
        self,
        files: Callable[[], Files],
        max_upload_s: float,
        on_delete: Callable[[str], Awaitable[None]],
    ) -> None:
        self._files = files
        self._max_upload_s = max_upload_s
        self._on_delete = on_delete

    def routes(self) -> list[Route]:
        return [
            Route("/v1/files", self._upload, methods=["POST"]),
            Route("/v1/files", self._list, methods=["GET"]),
            Route("/v1/files/{file_id}", self._get, methods=["GET"]),
            Route("/v1/files/{file_id}", self._delete, methods=["DELETE"]),
            Route("/v1/files/{file_id}/content", self._content, methods=["GET"]),
        ]

    async def _upload(self, request: Request) -> Response:
        files, form = self._files(), Form()
        content_type = request.headers.get("content-type", "")
        pieces = _pieces(request, self._max_upload_s)
        try:
            await read_form(pieces, content_type, files.blobs.store, form)
            file = _read_file(form, caller().tenant)
            await files.add(file)
        except BaseException:
            if form.blob is not None:
                await asyncio.shield(asyncio.to_thread(files.blobs.remove, form.blob.id))
            raise
        return JSONResponse(write_file(file))

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        paging = read_paging(query, _MAX_LISTED, _MAX_LISTED, others=("purpose",))
        page = await self._files().page(paging, query.get("purpose", ""), caller().tenant)
        # It may hold ten thousand.
        listed = await asyncio.to_thread(_write_list, page)
        return Response(listed, media_type="application/json")

    async def _get(self, request: Request) -> Response:
        return JSONResponse(write_file(await self._find(request)))

    async def _delete(self, request: Request) -> Response:
        file_id: str = request.path_params["file_id"]
        await self._files().hide(file_id, caller().tenant)
        await self._on_delete(file_id)
        await self._files().remove(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, request: Request) -> Response:
        file = await self._find(request)
        headers = {
            "content-length": str(file.num_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            # A browser must not take somebody's upload for a page of this server.
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(
            self._files().read(file.id), headers=headers, media_type="application/octet-stream"
        )

    async def _find(self, request: Request) -> File:
        return await self._files().get(request.path_params["file_id"], caller().tenant)


def write_file(file: File) -> dict[str, object]:
    """Write a file in OpenAI's shape."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None if file.expires_at is None else int(file.expires_at),
    }


def _write_list(page: Page[File]) -> bytes:
    return orjson.dumps(write_page([write_file(file) for file in page.items], page.has_more))


async def _pieces(request: Request, max_upload_s: float) -> AsyncIterator[bytes]:
    """Yield a body as it arrives; it is never held whole, so it has no bound but the keeper's."""
    held: Body = request.scope["body"]
    stream = request.stream()
    until = time.monotonic() + max_upload_s
    try:
        while True:
            # Both bounds: one for a file on a slow line, one for a caller who sends nothing.
            wait_s = min(held.max_s, max(0.0, until - time.monotonic()))
            yield await asyncio.wait_for(anext(stream), wait_s)
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise TooSlow(
            f"a file must arrive within {max_upload_s:g} s, without pauses over {held.max_s:g} s"
        ) from error


def _read_file(form: Form, tenant: str | None) -> File:
    if form.blob is None or form.file_field != "file":
        raise InvalidRequest("send the file as the form's field 'file', with a filename", "file")
    for name in form.fields:
        if name not in _FIELDS:
            known = ", ".join(("file", *_FIELDS))
            raise InvalidRequest(f"unknown field {name[:64]!r}; the fields are: {known}", name[:64])
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of: {', '.join(PURPOSES)}", "purpose")
    filename = form.filename.replace("\\", "/").rpartition("/")[2]
    if not 1 <= len(filename) <= _MAX_FILENAME_CHARS or not filename.isprintable():
        raise InvalidRequest(
            f"the filename must have 1 to {_MAX_FILENAME_CHARS} printable characters", "file"
        )
    now = time.time()
    return File(
        id=form.blob.id,
        filename=filename,
        purpose=purpose,
        num_bytes=form.blob.num_bytes,
        created_at=now,
        expires_at=_read_expiry(form.fields, now),
        tenant=tenant,
    )


def _read_expiry(fields: dict[str, str], now: float) -> float | None:
    anchor, seconds = fields.get(_EXPIRES_ANCHOR), fields.get(_EXPIRES_SECONDS)
    if anchor is None and seconds is None:
        return None
    if (
        anchor != "created_at"
        or seconds is None
        or not (seconds.isascii() and seconds.isdigit() and len(seconds) < 9)
        or not _MIN_EXPIRES_S <= int(seconds) <= _MAX_EXPIRES_S
    ):
        raise InvalidRequest(
            "expires_after must have the anchor 'created_at' and seconds from "
            f"{_MIN_EXPIRES_S} to {_MAX_EXPIRES_S}",
            "expires_after",
        )
    return now + int(seconds)
