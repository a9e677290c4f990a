"""OpenAI's `/v1/vector_stores` and their search, as HTTP routes.

Source: openai/openai-openapi, the paths of the same names.
"""

import asyncio
import uuid

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.router.hybrid.hybrid import Hybrid
from services.router.vector_stores.answer import write_deleted, write_results, write_store
from services.router.vector_stores.attributes import read_metadata
from services.router.vector_stores.body import (
    ChunkingBody,
    CreateStoreBody,
    HybridBody,
    RankingBody,
    SearchBody,
    UpdateStoreBody,
    read_body_as,
)
from services.router.vector_stores.chunks import Chunking
from services.router.vector_stores.filters import read_filters
from services.router.vector_stores.retrieval import Retrieval
from services.router.vector_stores.routing import read_routing
from services.router.vector_stores.search import Wanted
from services.router.vector_stores.stores import Changes, VectorStore
from services.shared.auth import caller
from services.shared.errors import InvalidRequest
from services.shared.http import while_connected
from services.shared.paging import read_paging, write_page

_STORES, _STORE = "/v1/vector_stores", "/v1/vector_stores/{vector_store_id}"
OPEN_TO_TENANTS = frozenset(
    {
        f"POST {_STORES}",
        f"GET {_STORES}",
        f"GET {_STORE}",
        f"POST {_STORE}",
        f"DELETE {_STORE}",
        f"POST {_STORE}/search",
    }
)
"""Each asks `caller()` whose stores it may touch."""


class VectorStoresHttp:
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
            Route(_STORES, self._create, methods=["POST"]),
            Route(_STORES, self._list, methods=["GET"]),
            Route(_STORE, self._get, methods=["GET"]),
            Route(_STORE, self._update, methods=["POST"]),
            Route(_STORE, self._delete, methods=["DELETE"]),
            Route(f"{_STORE}/search", self._search, methods=["POST"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = await read_body_as(CreateStoreBody, request, self._max_body_bytes)
        id_ = f"vs_{uuid.uuid4().hex}"
        store = VectorStore(
            id=id_,
            tenant=caller().tenant,
            collection=id_,
            model=body.model,
            name=body.name or "",
            description=body.description,
            metadata=read_metadata(body.metadata),
            expires_days=body.expires_after.days if body.expires_after else None,
        )
        chunking = read_chunking(body.chunking_strategy)
        created = await self._retrieval.create_store(store, body.file_ids or [], chunking)
        return JSONResponse(write_store(created))

    async def _list(self, request: Request) -> Response:
        paging = read_paging(request.query_params)
        page = await asyncio.to_thread(self._retrieval.stores.page, paging, caller().tenant)
        return JSONResponse(write_page([write_store(store) for store in page.items], page.has_more))

    async def _get(self, request: Request) -> Response:
        store = await asyncio.to_thread(
            self._retrieval.stores.get, store_id(request), caller().tenant
        )
        return JSONResponse(write_store(store))

    async def _update(self, request: Request) -> Response:
        body = await read_body_as(UpdateStoreBody, request, self._max_body_bytes)
        changes = Changes(
            frozenset(body.model_fields_set),
            body.name or "",
            read_metadata(body.metadata),
            body.expires_after.days if body.expires_after else None,
        )
        store = await asyncio.to_thread(
            self._retrieval.stores.change, store_id(request), changes, caller().tenant
        )
        return JSONResponse(write_store(store))

    async def _delete(self, request: Request) -> Response:
        id_ = store_id(request)
        await self._retrieval.delete_store(id_, caller().tenant)
        return JSONResponse(write_deleted(id_, "vector_store"))

    async def _search(self, request: Request) -> Response:
        body = await read_body_as(SearchBody, request, self._max_body_bytes)
        ranking = body.ranking_options or RankingBody()
        wanted = Wanted(
            queries=(body.query,) if isinstance(body.query, str) else tuple(body.query),
            limit=body.max_num_results,
            threshold=ranking.score_threshold,
            hybrid=None if ranking.hybrid_search is None else _read_hybrid(ranking.hybrid_search),
            condition=None if body.filters is None else read_filters(body.filters),
            routing=None if body.routing is None else read_routing(body.routing),
        )
        searching = self._retrieval.search(store_id(request), wanted, caller().tenant)
        return JSONResponse(write_results(await while_connected(request, searching)))


def _read_hybrid(body: HybridBody) -> Hybrid:
    both = body.embedding_weight + body.text_weight
    return Hybrid(fusion="rank", weight=body.embedding_weight / both)


def store_id(request: Request) -> str:
    """Return the id of the store that a path names."""
    id_: str = request.path_params["vector_store_id"]
    return id_


def read_chunking(body: ChunkingBody | None) -> Chunking | None:
    """Read how files are to be cut; None: as suits the model.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    if body is None or (body.type == "auto" and body.static is None):
        return None
    if body.type == "auto" or body.static is None:
        raise InvalidRequest(
            "chunking_strategy of type 'static' needs 'static'; 'auto' has nothing beside it",
            "chunking_strategy",
        )
    chunking = Chunking(body.static.max_chunk_size_tokens, body.static.chunk_overlap_tokens)
    if chunking.overlap > chunking.max_tokens // 2:
        raise InvalidRequest(
            "chunking_strategy: chunk_overlap_tokens must be at most half of "
            f"max_chunk_size_tokens ({chunking.max_tokens // 2}), got {chunking.overlap}",
            "chunking_strategy",
        )
    return chunking
