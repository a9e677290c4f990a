"""Every answer about files and vector stores has all fields of OpenAI's own types."""

import httpx
import pytest
from openai.types import (
    FileDeleted,
    FileObject,
    VectorStore,
    VectorStoreDeleted,
    VectorStoreSearchResponse,
)
from openai.types.vector_stores import (
    FileContentResponse,
    VectorStoreFile,
    VectorStoreFileBatch,
    VectorStoreFileDeleted,
)
from pydantic import TypeAdapter

from tests.conftest import serve
from tests.router.conftest import Encoder, encoder

__all__ = ["encoder"]  # the fixture, for the one below

OURS = {"routing"}


@pytest.fixture
async def http(tmp_path, encoder: tuple[Encoder, str]):
    router = serve(
        tmp_path,
        "serve",
        "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=encoder[1],
        MATRYOSHKA_ROUTER_DRAIN_S="0",
    )
    async with httpx.AsyncClient(base_url=f"{router.http}/v1", timeout=20) as client:
        yield client
    assert router.stop() == 0


def check(kind, answer, *more):
    """The answer has the type's fields, each of its own type, and none of another's."""
    TypeAdapter(kind).validate_python(answer, strict=True)
    fields = set(kind.model_fields) | set(more)
    assert fields <= set(answer), "fields are missing"
    assert set(answer) - fields <= OURS, "fields that OpenAI does not have"
    return answer


def check_list(kind, answer, *more):
    assert set(answer) == {"object", "data", "first_id", "last_id", "has_more"}
    assert answer["object"] == "list"
    assert (answer["first_id"], answer["last_id"]) == (
        answer["data"][0]["id"], answer["data"][-1]["id"],
    )  # fmt: skip
    for item in answer["data"]:
        check(kind, item, *more)


async def upload(http, name, text):
    files = {"file": (name, text)}
    answer = await http.post("/files", files=files, data={"purpose": "assistants"})
    return check(FileObject, answer.json())


async def test_every_answer_has_openais_shape(http):
    """Files, stores, files of stores, batches, search and what is said of deletions."""

    async def get(path):
        return (await http.get(path)).json()

    async def post(path, **body):
        return (await http.post(path, json=body)).json()

    async def delete(path):
        return (await http.delete(path)).json()

    good, bad = await upload(http, "a.txt", b"text"), await upload(http, "a.exe", b"MZ")
    check(FileObject, await get(f"/files/{good['id']}"))
    check_list(FileObject, await get("/files"))

    expiry = {"anchor": "last_active_at", "days": 1}
    store = check(VectorStore, await post("/vector_stores", expires_after=expiry), "description")
    check(VectorStore, await post(f"/vector_stores/{store['id']}", name="x"), "description")
    check_list(VectorStore, await get("/vector_stores"), "description")

    path = f"/vector_stores/{store['id']}"
    check(VectorStoreFile, await post(f"{path}/files", file_id=good["id"]))
    batch = await post(f"{path}/file_batches", file_ids=[good["id"], bad["id"]])
    while check(VectorStoreFileBatch, batch)["status"] == "in_progress":
        batch = await get(f"{path}/file_batches/{batch['id']}")
    check(VectorStoreFile, await get(f"{path}/files/{bad['id']}"))
    check_list(VectorStoreFile, await get(f"{path}/files"))
    check_list(VectorStoreFile, await get(f"{path}/file_batches/{batch['id']}/files"))
    check(VectorStoreFileBatch, await post(f"{path}/file_batches/{batch['id']}/cancel"))
    changed = await post(f"{path}/files/{good['id']}", attributes={"a": "b", "c": 1.5, "d": True})
    check(VectorStoreFile, changed)

    content = await get(f"{path}/files/{good['id']}/content")
    assert (content["object"], content["has_more"], content["next_page"]) == (
        "vector_store.file_content.page", False, None,
    )  # fmt: skip
    check(FileContentResponse, content["data"][0])
    found = await post(f"{path}/search", query="text")
    assert set(found) == {"object", "search_query", "data", "has_more", "next_page"}
    assert found["object"] == "vector_store.search_results.page"
    check(VectorStoreSearchResponse, found["data"][0])

    check(VectorStoreFileDeleted, await delete(f"{path}/files/{bad['id']}"))
    check(VectorStoreDeleted, await delete(path))
    check(FileDeleted, await delete(f"/files/{good['id']}"))


async def test_a_poll_is_told_when_to_ask_again(http):
    """OpenAI's SDKs ask every second unless the answer says otherwise."""
    store = (await http.post("/vector_stores", json={})).json()
    file = await upload(http, "a.txt", b"text")
    path = f"/vector_stores/{store['id']}/files"
    await http.post(path, json={"file_id": file["id"]})
    polled = await http.get(f"{path}/{file['id']}", headers={"X-Stainless-Poll-Helper": "true"})
    assert 1 <= int(polled.headers["openai-poll-after-ms"]) <= 1000
    assert "openai-poll-after-ms" not in (await http.get(f"{path}/{file['id']}")).headers
