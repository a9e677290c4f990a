"""A text in every field of every service that takes one, in requests right and wrong."""

import time

import grpc
import pytest

from services.shared.pb import (
    encoder_pb2,
    encoder_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

TEXT = "zanzibar quokka manuscript"
WRONG_KEY = "k_wrong_81d2"


def ask_over_http(http):
    """Call the routes of all services with a client that has the key; yield what they answer."""
    bodies = {
        "/v1/embeddings": [
            {"input": TEXT},
            {"input": TEXT, "dimensions": 9999},
            {"input": [TEXT, ""]},
            {"input": {"text": TEXT}},
            {"input": [TEXT] * 2049},
            {"input": [[TEXT]]},
        ],
        "/v1/rerank": [
            {"query": TEXT, "documents": [TEXT]},
            {"query": TEXT, "documents": [TEXT, 1]},
            {"query": [TEXT], "documents": []},
        ],
    }
    for path, some in bodies.items():
        for body in some:
            yield http.post(path, json={"model": "default"} | body)
        yield http.post(path, content=f'{{"input": "{TEXT}"')
        yield http.post(
            path, json={"input": TEXT}, headers={"authorization": f"Bearer {WRONG_KEY}"}
        )
        yield http.post(f"{path}?api_key={WRONG_KEY}", json={"model": "nobody", "input": TEXT})
    store = http.post("/v1/vector_stores", json={"name": "planted"}).json()["id"]
    files = {
        "good.txt": (TEXT * 3).encode(),
        "bad.pdf": b"%PDF-1.7 " + TEXT.encode(),
        "bad.json": f'{{"text": "{TEXT}'.encode(),
        "bad.jsonl": f'{{"anchor": "{TEXT}"}}\n["{TEXT}"]\n{TEXT}\n'.encode(),
        "good.jsonl": "".join(
            f'{{"anchor": "{TEXT} {i}", "positive": "{TEXT} answer {i}"}}\n' for i in range(20)
        ).encode(),
    }
    ids = {}
    for name, content in files.items():
        purpose = "fine-tune" if name.endswith("l") else "assistants"
        upload = http.post("/v1/files", files={"file": (name, content)}, data={"purpose": purpose})
        ids[name] = upload.json()["id"]
        if purpose == "assistants":
            attach = {"file_id": ids[name], "attributes": {"about": TEXT}}
            assert http.post(f"/v1/vector_stores/{store}/files", json=attach).status_code == 200
    for name in ("good.txt", "bad.pdf", "bad.json"):
        where = f"/v1/vector_stores/{store}/files/{ids[name]}"
        deadline = time.monotonic() + 60
        while (state := http.get(where)).json()["status"] == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield state.json()["last_error"]
    about = {"type": "eq", "key": "about", "value": TEXT}
    for body in (
        {"query": TEXT, "filters": about},
        {"query": TEXT, "filters": about | {"type": "near"}},
        {"query": TEXT, "filters": about | {"value": {"text": TEXT}}},
        {"query": [TEXT, 1]},
        {"query": TEXT * 10_000},
        {"query": TEXT, "max_num_results": 0},
    ):
        yield http.post(f"/v1/vector_stores/{store}/search", json=body)
    long = {"metadata": {"about": TEXT * 100}}
    yield http.post(f"/v1/vector_stores/{store}", json=long)
    method = {"type": "matryoshka", "matryoshka": {"steps": 2}}
    for name in ("bad.jsonl", "good.jsonl"):
        job = {"model": "", "training_file": ids[name], "method": method}
        started = http.post("/v1/fine_tuning/jobs", json=job)
        yield started
    assert started.status_code == 200, started.text
    where = f"/v1/fine_tuning/jobs/{started.json()['id']}"
    while (state := http.get(where).json())["status"] not in ("succeeded", "failed"):
        time.sleep(0.2)
    assert state["status"] == "succeeded"
    yield http.get(f"{where}/events").json()


def ask_over_grpc(channel, planted):
    """The same over gRPC, with the key as metadata; yield what is said of errors."""
    encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
    router = router_pb2_grpc.RouterServiceStub(channel)
    trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
    texts, wrong = [TEXT], (("authorization", f"Bearer {WRONG_KEY}"),)
    create = router_pb2.CreateCollectionRequest(name="planted", model="default")
    router.CreateCollection(create, metadata=planted)

    def upsert(**point):
        batch = router_pb2.UpsertRequest(
            collection="planted", points=[router_pb2.Point(text=TEXT, **point)]
        )
        return list(router.Upsert(iter([batch]), metadata=planted))

    def upload(*parts):
        some = iter([trainer_pb2.UploadFileRequest(**part) for part in parts])
        return trainer.UploadFile(some, metadata=planted)

    upsert(id="1")
    search = router_pb2.SearchRequest
    for call in (
        lambda: encoder.Embed(
            encoder_pb2.EmbedRequest(texts=texts, dimensions=[9999]), metadata=planted
        ),
        lambda: encoder.Embed(encoder_pb2.EmbedRequest(texts=[TEXT, ""]), metadata=planted),
        lambda: encoder.Embed(encoder_pb2.EmbedRequest(texts=texts), metadata=wrong),
        lambda: encoder.Rerank(
            encoder_pb2.RerankRequest(query=TEXT, documents=texts), metadata=planted
        ),
        lambda: router.Search(search(collection="none", text=TEXT), metadata=planted),
        lambda: router.Search(search(collection="planted", text=TEXT, limit=9999),
                              metadata=planted),
        lambda: router.Search(search(collection="planted", text=TEXT), metadata=wrong),
        lambda: router.Search(
            search(collection="planted", text=TEXT, hybrid=router_pb2.Hybrid()), metadata=planted
        ),
        lambda: upsert(id=""),
        lambda: upsert(id="1", attributes={"": router_pb2.AttributeValue(string_value=TEXT)}),
        lambda: upload({"data": TEXT.encode()}),
        lambda: upload({"filename": "a"}, {"data": TEXT.encode()}, {"num_bytes": 1}),
        lambda: trainer.ListJobs(trainer_pb2.ListJobsRequest(), metadata=wrong),
    ):  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            call()
        yield f"{caught.value.details()} {caught.value.trailing_metadata()}"
