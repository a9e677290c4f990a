"""What answers about vector stores hold, in OpenAI's shapes, and `routing` beside.

Source: openai/openai-openapi, `VectorStoreObject` and what it leads to.
"""

from services.router.vector_stores.rows import FileBatch, FileCounts, StoreFile
from services.router.vector_stores.search import Answer
from services.router.vector_stores.stores import VectorStore

_ANCHOR = "last_active_at"


def write_store(store: VectorStore) -> dict[str, object]:
    """Write a store; `routing` says what is behind it."""
    status = "in_progress" if store.counts.in_progress else "completed"
    days = store.expires_days
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "name": store.name,
        "description": store.description,
        "usage_bytes": store.usage_bytes,
        "file_counts": write_counts(store.counts),
        "status": "expired" if store.is_expired else status,
        "expires_after": None if days is None else {"anchor": _ANCHOR, "days": days},
        "expires_at": None if store.expires_at is None else int(store.expires_at),
        "last_active_at": int(store.last_active_at),
        "metadata": store.metadata,
        "routing": {"collection": store.collection, "model": store.model},
    }


def write_counts(counts: FileCounts) -> dict[str, int]:
    """Write files by status."""
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "total": counts.total,
    }


def write_store_file(file: StoreFile) -> dict[str, object]:
    """Write a file of a store."""
    error = None
    if file.error is not None:
        error = {"code": file.error[0], "message": file.error[1]}
    return {
        "id": file.file_id,
        "object": "vector_store.file",
        "usage_bytes": file.usage_bytes,
        "created_at": int(file.created_at),
        "vector_store_id": file.store_id,
        "status": file.state,
        "last_error": error,
        "chunking_strategy": {
            "type": "static",
            "static": {
                "max_chunk_size_tokens": file.chunking.max_tokens,
                "chunk_overlap_tokens": file.chunking.overlap,
            },
        },
        "attributes": file.attributes,
    }


def write_batch(batch: FileBatch) -> dict[str, object]:
    """Write a batch of files."""
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": int(batch.created_at),
        "vector_store_id": batch.store_id,
        "status": batch.status,
        "file_counts": write_counts(batch.counts),
    }


def write_deleted(id_: str, kind: str) -> dict[str, object]:
    """Say that something is gone."""
    return {"id": id_, "object": f"{kind}.deleted", "deleted": True}


def write_content(parts: list[str]) -> dict[str, object]:
    """Write the text of a file."""
    return {
        "object": "vector_store.file_content.page",
        "data": [_text(part) for part in parts],
        "has_more": False,
        "next_page": None,
    }


def write_results(answer: Answer) -> dict[str, object]:
    """Write what was found; there is one page, of as many results as were asked for."""
    page: dict[str, object] = {
        "object": "vector_store.search_results.page",
        "search_query": list(answer.queries),
        "data": [
            {
                "file_id": result.file_id,
                "filename": result.filename,
                "score": result.score,
                "attributes": result.attributes,
                "content": [_text(result.text)],
            }
            for result in answer.results
        ],
        "has_more": False,
        "next_page": None,
    }
    if answer.routing is not None:
        page["routing"] = answer.routing
    return page


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}
