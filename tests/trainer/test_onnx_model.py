"""A finished model as ONNX: what other servers make of it, and what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from services.shared.errors import InvalidRequest, ServiceError
from services.shared.vectors import normalize
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.results.layout import check_exportable, read_json
from services.trainer.results.onnx_model import FILENAME, write_onnx
from services.trainer.training.interrupt import Interrupt
from services.trainer.training.work import run_job
from tests.trainer.conftest import make_job, start_job
from tests.trainer.test_export import TEXTS

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="the extra `onnx` is not installed",
)


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_model, tiny_pairs):
    """An adaptor job, so that there is a head behind the pooling."""
    folder = make_job(
        tmp_path_factory.mktemp("jobs") / "job", tiny_model, tiny_pairs, steps=5, onnx=True
    )
    assert start_job(folder).wait() == 0, (folder / "log.txt").read_text()
    return folder


@needs_packages
def test_other_servers_make_the_same_vectors_of_it(job):
    """Each input by its name; tokens' vectors, pooled and turned as the folder says; and a vector
    for each text behind everything; of one text and of several."""
    import onnxruntime

    folder = job / "model"
    session = onnxruntime.InferenceSession(folder / FILENAME, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == [
        "input_ids", "attention_mask", "token_type_ids",
    ]  # fmt: skip
    assert [one.name for one in session.get_outputs()] == [
        "last_hidden_state", "sentence_embedding",
    ]  # fmt: skip
    assert read_json(folder / "1_Pooling" / "config.json")["pooling_mode_mean_tokens"]
    weight = load_file(folder / "3_Dense" / "model.safetensors")["linear.weight"]
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    for texts in (TEXTS, TEXTS[:1], TEXTS * 5):
        given = plain.tokenizer(
            texts, padding=True, truncation=True, max_length=48, return_tensors="np"
        )
        hidden, vectors = session.run(None, {name: given[name] for name in given})
        mask = given["attention_mask"][:, :, None]
        pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        wanted = plain.encode(texts)
        np.testing.assert_allclose(vectors, wanted, atol=1e-5)
        np.testing.assert_allclose(normalize(normalize(pooled) @ weight.T), wanted, atol=1e-5)


@needs_packages
def test_the_lines_of_the_document_read_it(job):
    """What docs/models.md shows is all that it takes."""
    import onnxruntime
    import transformers

    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    lines = page.partition("```py\n")[2].partition("```")[0]
    assert len(lines.splitlines()) == 3
    names = {
        "folder": str(job / "model"), "onnxruntime": onnxruntime, "transformers": transformers,
    }  # fmt: skip
    exec(lines, names)
    wanted = SentenceTransformer(str(job / "model"), device="cpu").encode(["a text"])
    np.testing.assert_allclose(names["vectors"], wanted, atol=1e-5)


@needs_packages
def test_a_file_that_makes_other_vectors_is_refused(tmp_path, tiny_model, monkeypatch):
    """What was written is run, not trusted: here its weights are changed after the export."""
    import onnx

    export = torch.onnx.export

    def spoil(*args, **kwargs):
        program = export(*args, **kwargs)
        save = program.save

        def save_spoilt(target):
            save(target)
            model = onnx.load(target)
            first = next(one for one in model.graph.initializer if len(one.dims) == 2)
            first.raw_data = np.roll(onnx.numpy_helper.to_array(first), 1).tobytes()
            onnx.save(model, target)

        program.save = save_spoilt
        return program

    # No folder is known whose export goes wrong, so the exporter is made to.
    monkeypatch.setattr(torch.onnx, "export", spoil)
    with pytest.raises(ServiceError, match="makes other vectors as ONNX than in torch"):
        write_onnx(tiny_model, tmp_path / "model.onnx", TEXTS)


@needs_packages
def test_what_cannot_be_exported_fails_before_it_is_trained(
    tmp_path, tiny_model, tiny_pairs, monkeypatch
):
    """The base is exported first, so that no hour of training ends in a refusal."""
    folder = make_job(tmp_path / "job", tiny_model, tiny_pairs, steps=5, onnx=True)

    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("an operator is missing")

    # No architecture that loads here is known to fail.
    monkeypatch.setattr(torch.onnx, "export", fail)
    try:
        with pytest.raises(ServiceError, match="cannot be exported as ONNX; leave 'onnx' out"):
            run_job(folder, Interrupt())
    finally:
        torch.use_deterministic_algorithms(False)  # as the job's own process has it
    assert not (folder / "vectors").exists()


def test_it_is_refused_where_packages_are_absent(tiny_model, monkeypatch):
    """Before anything is queued, with what to install."""
    # They may be installed here.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"matryoshka-suite\[onnx\].*onnxscript") as caught:
        check_exportable(tiny_model)
    assert caught.value.param == "hyperparameters.onnx"


@pytest.mark.parametrize(
    "wanted",
    [
        {"method": "nest"},
        {"method": "static"},
        {"method": "distill", "student": "static"},
    ],
)
def test_what_makes_no_network_makes_no_onnx(wanted):
    """A rotation and a table are no graph of operators."""
    with pytest.raises(InvalidRequest, match="onnx must be left out for METHOD_NEST"):
        fill(Wanted(**wanted, onnx=True), 384, 1000)
