"""Tenants of a trainer: each has its own files and jobs, and hears nothing of another's."""

import hashlib
import json

import openai
import pytest

from tests.conftest import serve
from tests.trainer.conftest import make_tiny_pairs, write_pairs
from tests.trainer.test_service import SETTINGS

STEPS = {"matryoshka": {"steps": 3}}


@pytest.fixture
def clients(tmp_path):
    """An operator's and two tenants'."""
    keys = tmp_path / "keys"
    keys.write_text("".join(
        json.dumps({"name": key, "sha256": hashlib.sha256(key.encode()).hexdigest()} | more) + "\n"
        for key, more in (
            ("ops", {}), ("acme", {"tenant": "acme"}), ("globex", {"tenant": "globex"})
        )
    ))  # fmt: skip
    process = serve(
        tmp_path, "serve", "trainer", **SETTINGS | {"MATRYOSHKA_TRAINER_KEYS_FILE": str(keys)}
    )
    clients = [
        openai.OpenAI(base_url=f"{process.http}/v1", api_key=key, timeout=60)
        for key in ("ops", "acme", "globex")
    ]
    yield clients
    for client in clients:
        client.close()
    assert process.stop() == 0


def test_a_tenant_sees_its_own_files_and_jobs_only(clients, tmp_path, tiny_model):
    """Others' ids are answered like ids that do not exist; folders of the machine are refused."""
    ops, acme, globex = clients
    path = write_pairs(tmp_path / "pairs.jsonl", make_tiny_pairs())
    mine, theirs = (c.files.create(file=path, purpose="fine-tune").id for c in (acme, globex))
    jobs = acme.fine_tuning.jobs
    job = jobs.create(model="", training_file=mine, extra_body=STEPS)
    assert job.organization_id == "acme"
    with pytest.raises(openai.NotFoundError, match="upload it first"):
        jobs.create(model="", training_file=theirs)
    with pytest.raises(openai.NotFoundError, match="upload it first"):
        jobs.create(model="", training_file=mine, validation_file=theirs)
    with pytest.raises(openai.BadRequestError, match="model must be 'matryoshka-MiniLM-L6-v2'"):
        jobs.create(model=str(tiny_model), training_file=mine)
    others = globex.fine_tuning.jobs
    for call in (others.retrieve, others.pause, others.resume, others.cancel, others.list_events,
                 others.checkpoints.list):  # fmt: skip
        with pytest.raises(openai.NotFoundError, match="there is no job"):
            call(job.id)
    with pytest.raises(openai.NotFoundError, match="there is no job"):
        others.list(after=job.id)
    assert others.list().data == []
    assert [one.id for one in jobs.list()] == [one.id for one in ops.fine_tuning.jobs.list()]
    headers = {"Idempotency-Key": "k"}
    again = others.create(model="", training_file=theirs, extra_body=STEPS, extra_headers=headers)
    own = jobs.create(model="", training_file=mine, extra_body=STEPS, extra_headers=headers)
    assert own.id != again.id, "a key is the tenant's own"
    for client, one in ((acme, own), (globex, again), (ops, job)):
        ended = client.fine_tuning.jobs.cancel(one.id)
        assert ended.status == "cancelled"
