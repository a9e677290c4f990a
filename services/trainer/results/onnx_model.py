"""A finished model as ONNX too: `onnx/model.onnx` in its folder, where other servers look for it.

In: a folder whose modules and weights are final. Out: one file in it, for ONNX Runtime, checked
against torch on texts. sentence-transformers' ONNX backend and optimum take its first output, a
vector for each token, and do the rest themselves; text-embeddings-inference takes the second, which
comes out behind all modules of the folder: it knows no heads. What can be told from a folder before
it is trained, `layout.check_exportable` tells.

Source: sentence_transformers/backend/load.py; text-embeddings-inference, backends/ort/src/lib.rs.
Shapes: B texts, T tokens of the longest, D numbers of a token's vector, M of a text's.
"""

import inspect
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.shared.calibration import sample_texts
from services.shared.errors import ServiceError
from services.shared.loading import load_modules
from services.shared.vectors import normalize
from services.trainer.results.layout import check_exportable

FILENAME = "onnx/model.onnx"
OUTPUTS = ("last_hidden_state", "sentence_embedding")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Both in float32: they differ in the order of sums only, in the sixth digit.
_MIN_COSINE = 0.9999


def rehearse(base: Path) -> None:
    """Export the base and throw it away: what cannot be exported shall not be trained first.

    Raises:
        InvalidRequest: as `layout.check_exportable`; the service may run in another place.
        ServiceError: as `write_onnx`.
    """
    check_exportable(base)
    with tempfile.TemporaryDirectory() as scratch:
        write_onnx(base, Path(scratch) / "model.onnx", sample_texts(4, seed=0))


def write_onnx(folder: Path, target: Path, probes: Sequence[str]) -> None:
    """Write a model folder as ONNX, and check what was written.

    Args:
        folder: a transformer and what follows it.
        target: the file; its folder is made.
        probes: texts that both must make the same of.

    Raises:
        ServiceError: torch cannot export such a model, or ONNX Runtime makes something else of it.
    """
    model = load_modules(folder, "cpu")
    inputs = _inputs(model)
    texts = _read(model, probes, inputs)
    graph = _Graph(model, inputs).eval()
    axes = tuple({0: "batch_size", 1: "sequence_length"} for _ in inputs)
    try:
        # The exporter warns of what it passes over: names of axes that are one, other libraries.
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                graph, tuple(texts[name] for name in inputs), dynamo=True, verbose=False,
                input_names=inputs, output_names=OUTPUTS, dynamic_shapes=(axes,),
                external_data=False,
            )  # fmt: skip
            assert program is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            program.save(target)
    except torch.onnx.OnnxExporterError as error:
        raise ServiceError(
            "the model cannot be exported as ONNX; leave 'onnx' out, or take another base model"
        ) from error
    # All in one batch, where texts are filled up to the longest; and the first one by itself.
    for count in (len(probes), 1):
        _check(graph, target, _read(model, probes[:count], inputs))


class _Graph(torch.nn.Module):
    """From a batch of token ids to both outputs."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:  # noqa: ANN401 (sentence-transformers has no types)
        super().__init__()
        self.network = model[0].auto_model
        self.others = torch.nn.ModuleList(list(model)[1:])
        self.inputs = inputs

    def forward(self, *tensors_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return last_hidden_state_BTD and sentence_embedding_BM."""
        given = dict(zip(self.inputs, tensors_BT, strict=True))
        hidden_BTD = self.network(**given).last_hidden_state
        features = {"token_embeddings": hidden_BTD, "attention_mask": given["attention_mask"]}
        for module in self.others:
            features = module(features)
        return hidden_BTD, features["sentence_embedding"]


def _inputs(model: Any) -> list[str]:  # noqa: ANN401
    """Return what the tokenizer gives and the network takes."""
    taken = inspect.signature(model[0].auto_model.forward).parameters
    given = model.tokenizer.model_input_names
    return [name for name in _INPUTS if name in taken and name in given]


def _read(model: Any, texts: Sequence[str], inputs: Sequence[str]) -> dict[str, torch.Tensor]:  # noqa: ANN401
    features = model.preprocess(list(texts))
    return {name: features[name] for name in inputs}


def _check(graph: _Graph, target: Path, texts: dict[str, torch.Tensor]) -> None:
    import onnxruntime  # not at the top: it is installed with the extra `onnx` only

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    found = session.run(OUTPUTS, {name: values.numpy() for name, values in texts.items()})
    with torch.no_grad():
        wanted = [values.numpy() for values in graph(*texts.values())]
    is_token_BT = texts["attention_mask"].numpy().astype(bool)  # what fills up is anything
    pairs = [(found[0][is_token_BT], wanted[0][is_token_BT]), (found[1], wanted[1])]
    for made, expected in pairs:
        cosine = np.sum(normalize(made) * normalize(expected), axis=1).min()
        if not cosine >= _MIN_COSINE:
            raise ServiceError(
                f"the model makes other vectors as ONNX than in torch (cosine {cosine:.5f}); leave "
                "'onnx' out, or take another base model"
            )
