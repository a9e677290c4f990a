"""What `helm test` runs: embed a text, index one, find it again, read the metrics.

Over HTTP, with the addresses of the environment and the key in the file it names. It leaves nothing
behind, and ends with a sentence on the first thing that is not as it should be.
"""

import os
import ssl
import sys
import time
from pathlib import Path

import httpx

TEXT = "Nested dolls open to smaller dolls."
PATIENCE_S = 120.0


def expect(is_so: bool, sentence: str) -> None:
    if not is_so:
        sys.exit(f"FAILED: {sentence}")
    print(f"ok: {sentence}", flush=True)


def connect(name: str) -> httpx.Client | None:
    """Return a client of a service; None: it is not part of this release."""
    if not (url := os.environ.get(name)):
        return None
    key_file = os.environ.get("API_KEY_FILE")
    key = Path(key_file).read_text().strip() if key_file else ""
    return httpx.Client(
        base_url=url,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=60,
        verify=ssl.create_default_context(cafile=os.environ.get("CA_FILE")),
    )


def embed(encoder: httpx.Client) -> None:
    answer = encoder.post("/v1/embeddings", json={"model": "default", "input": [TEXT]})
    expect(answer.is_success, f"the encoder embeds a text ({answer.status_code})")
    vector = answer.json()["data"][0]["embedding"]
    length = sum(value * value for value in vector) ** 0.5
    expect(abs(length - 1) < 0.01, f"its {len(vector)} numbers have length 1")


def search(router: httpx.Client) -> None:
    uploaded = router.post(
        "/v1/files", files={"file": ("smoke.txt", TEXT.encode())}, data={"purpose": "assistants"}
    )
    expect(uploaded.is_success, f"the router takes a file ({uploaded.status_code})")
    file_id, store_id = uploaded.json()["id"], ""
    try:
        store = router.post("/v1/vector_stores", json={"name": "smoke", "file_ids": [file_id]})
        expect(store.is_success, f"and makes a vector store of it ({store.status_code})")
        store_id = store.json()["id"]
        counts = wait(router, store_id)
        expect(counts["completed"] == 1, f"which is indexed ({counts})")
        found = router.post(
            f"/v1/vector_stores/{store_id}/search", json={"query": "dolls within dolls"}
        )
        expect(found.is_success, f"and searched ({found.status_code})")
        texts = [part["text"] for hit in found.json()["data"] for part in hit["content"]]
        expect(texts == [TEXT], "the text is found")
    finally:
        if store_id:
            router.delete(f"/v1/vector_stores/{store_id}")
        router.delete(f"/v1/files/{file_id}")


def wait(router: httpx.Client, store_id: str) -> dict[str, int]:
    """Return how many files of a store are in which state, once none is on its way."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        counts: dict[str, int] = router.get(f"/v1/vector_stores/{store_id}").json()["file_counts"]
        if not counts["in_progress"] or time.monotonic() > deadline:
            return counts
        time.sleep(0.2)


def read_metrics(name: str, service: httpx.Client) -> None:
    page = service.get("/metrics")
    expect(f"matryoshka_{name}_requests_total" in page.text, f"the {name} shows its metrics")


def main() -> None:
    clients = {name: connect(f"{name.upper()}_URL") for name in ("encoder", "router", "trainer")}
    encoder, router, trainer = clients.values()
    if encoder:
        embed(encoder)
    if router:
        search(router)
    if trainer:
        jobs = trainer.get("/v1/fine_tuning/jobs")
        expect(jobs.is_success, f"the trainer lists its jobs ({jobs.status_code})")
    for name, client in clients.items():
        if client:
            read_metrics(name, client)
            client.close()


if __name__ == "__main__":
    main()
