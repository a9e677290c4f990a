"""OpenAI's `/v1/vector_stores/{id}/files` and `/file_batches`, as HTTP routes.

Source: openai/openai-openapi, the paths of the same names.
"""

import asyncio

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.router.attributes import Attributes
from services.router.vector_stores.answer import (
    write_batch,
    write_content,
    write_deleted,
    write_store_file,
)
from services.router.vector_stores.attributes import read_attributes
from services.router.vector_stores.body import AttributesBody, BatchBody, FileBody, read_body_as
from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.retrieval import Retrieval
from services.router.vector_stores.rows import STATUSES
from services.router.vector_stores.stores_http import read_chunking, store_id
from services.shared.auth import caller
from services.shared.errors import InvalidRequest
from services.shared.paging import read_paging, write_page

# What OpenAI's SDKs send when they wait, and what they then obey; else they ask every second.
_POLLS = "x-stainless-poll-helper"
_POLL_AFTER = {"openai-poll-after-ms": "250"}
_FILES = "/v1/vector_stores/{vector_store_id}/files"
_BATCHES = "/v1/vector_stores/{vector_store_id}/file_batches"
OPEN_TO_TENANTS = frozenset(
    {
        f"POST {_FILES}",
        f"GET {_FILES}",
        f"GET {_FILES}/{{file_id}}",
        f"POST {_FILES}/{{file_id}}",
        f"DELETE {_FILES}/{{file_id}}",
        f"GET {_FILES}/{{file_id}}/content",
        f"POST {_BATCHES}",
        f"GET {_BATCHES}/{{batch_id}}",
        f"POST {_BATCHES}/{{batch_id}}/cancel",
        f"GET {_BATCHES}/{{batch_id}}/files",
    }
)
"""Each asks `caller()` whose stores it may touch."""


class VectorStoreFilesHttp:
    """The routes.

    Args:
        retrieval: does what they ask for.
        max_body_bytes: longest body.
    """

    def __init__(self, retrieval: Retrieval, max_body_bytes: int) -> None:
        self._retrieval = retrieval
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        return [
            Route(_FILES, self._attach, methods=["POST"]),
            Route(_FILES, self._list, methods=["GET"]),
            Route(f"{_FILES}/{{file_id}}", self._get, methods=["GET"]),
            Route(f"{_FILES}/{{file_id}}", self._update, methods=["POST"]),
            Route(f"{_FILES}/{{file_id}}", self._delete, methods=["DELETE"]),
            Route(f"{_FILES}/{{file_id}}/content", self._content, methods=["GET"]),
            Route(_BATCHES, self._attach_batch, methods=["POST"]),
            Route(f"{_BATCHES}/{{batch_id}}", self._get_batch, methods=["GET"]),
            Route(f"{_BATCHES}/{{batch_id}}/cancel", self._cancel_batch, methods=["POST"]),
            Route(f"{_BATCHES}/{{batch_id}}/files", self._list, methods=["GET"]),
        ]

    async def _attach(self, request: Request) -> Response:
        body = await read_body_as(FileBody, request, self._max_body_bytes)
        wanted = [_read_file(body)]
        (file,) = await self._retrieval.attach(store_id(request), wanted, caller().tenant)
        return JSONResponse(write_store_file(file))

    async def _list(self, request: Request) -> Response:
        """List the files of a store, or of a batch."""
        query = request.query_params
        paging = read_paging(query, others=("filter",))
        status = query.get("filter")
        if status is not None and status not in STATUSES:
            raise InvalidRequest(f"filter must be one of: {', '.join(STATUSES)}", "filter")
        await self._check_store(request)
        page = await asyncio.to_thread(
            self._retrieval.store_files.page,
            store_id(request),
            paging,
            status,
            request.path_params.get("batch_id", ""),
        )
        files = [write_store_file(file) for file in page.items]
        return JSONResponse(write_page(files, page.has_more))

    async def _get(self, request: Request) -> Response:
        await self._check_store(request)
        file = await asyncio.to_thread(
            self._retrieval.store_files.get, store_id(request), _file_id(request)
        )
        return JSONResponse(write_store_file(file), headers=_poll_after(request))

    async def _update(self, request: Request) -> Response:
        body = await read_body_as(AttributesBody, request, self._max_body_bytes)
        attributes = read_attributes(body.attributes)
        file = await self._retrieval.set_attributes(
            store_id(request), _file_id(request), attributes, caller().tenant
        )
        return JSONResponse(write_store_file(file))

    async def _delete(self, request: Request) -> Response:
        await self._retrieval.detach(store_id(request), _file_id(request), caller().tenant)
        return JSONResponse(write_deleted(_file_id(request), "vector_store.file"))

    async def _content(self, request: Request) -> Response:
        parts = await self._retrieval.content(store_id(request), _file_id(request), caller().tenant)
        # It may be many megabytes.
        page = await asyncio.to_thread(orjson.dumps, write_content(parts))
        return Response(page, media_type="application/json")

    async def _attach_batch(self, request: Request) -> Response:
        body = await read_body_as(BatchBody, request, self._max_body_bytes)
        files = await asyncio.to_thread(_read_batch, body)
        batch = await self._retrieval.attach_batch(store_id(request), files, caller().tenant)
        return JSONResponse(write_batch(batch))

    async def _get_batch(self, request: Request) -> Response:
        await self._check_store(request)
        batch = await asyncio.to_thread(
            self._retrieval.store_files.get_batch, store_id(request), _batch_id(request)
        )
        return JSONResponse(write_batch(batch), headers=_poll_after(request))

    async def _cancel_batch(self, request: Request) -> Response:
        batch = await self._retrieval.cancel_batch(
            store_id(request), _batch_id(request), caller().tenant
        )
        return JSONResponse(write_batch(batch))

    async def _check_store(self, request: Request) -> None:
        """Refuse a store that is not there, or not for the caller: its files are no one else's."""
        await asyncio.to_thread(self._retrieval.stores.get, store_id(request), caller().tenant)


def _file_id(request: Request) -> str:
    id_: str = request.path_params["file_id"]
    return id_


def _batch_id(request: Request) -> str:
    id_: str = request.path_params["batch_id"]
    return id_


def _poll_after(request: Request) -> dict[str, str]:
    return _POLL_AFTER if request.headers.get(_POLLS) == "true" else {}


def _read_file(body: FileBody) -> tuple[str, Attributes, Chunking | None]:
    return body.file_id, read_attributes(body.attributes), read_chunking(body.chunking_strategy)


def _read_batch(body: BatchBody) -> list[tuple[str, Attributes, Chunking | None]]:
    if (body.file_ids is None) == (body.files is None):
        raise InvalidRequest("give either file_ids or files", "file_ids")
    if body.files is not None:  # each says how; OpenAI ignores what is said for all
        return [_read_file(file) for file in body.files]
    assert body.file_ids is not None
    attributes = read_attributes(body.attributes)
    chunking = read_chunking(body.chunking_strategy)
    return [(file_id, attributes, chunking) for file_id in body.file_ids]
