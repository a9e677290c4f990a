"""Plain OpenVINO, as an expert would write it.

Converted once, pooled in the graph, texts sorted and padded, batches of a token budget. Tried are
one inference on all cores (LATENCY) and several side by side (THROUGHPUT, AsyncInferQueue). int8 is
NNCF's post-training quantisation; 8-bit weights with activations quantised on the fly were measured
too, and left out: several times slower than bf16.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import torch
from transformers import AutoModel, AutoTokenizer

from bench.peers.engine import Encode, Given, Way, installed

_INPUTS = ("input_ids", "attention_mask")
_CALIBRATION_TEXTS = 300


class _Pooled(torch.nn.Module):
    """The network with mean pooling and L2 inside, so that only vectors leave the graph."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden_BTD = self.network(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=torch.zeros_like(input_ids),
        )[0]
        mask_BT1 = attention_mask[..., None].to(hidden_BTD.dtype)
        pooled_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled_BD, dim=1)


class _Tokens:
    """Tokenises as sentence-transformers does, and cuts at the same length."""

    def __init__(self, given: Given) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(given.model, local_files_only=True)
        self._max_tokens = given.max_tokens

    def batches(
        self, texts: list[str], budget: int
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Yield rows and padded inputs, the longest first."""
        ids = self._tokenizer(
            texts, truncation=True, max_length=self._max_tokens, return_attention_mask=False
        )["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        start = 0
        while start < len(order):
            longest = len(ids[order[start]])
            rows = order[start : start + max(1, budget // longest)]
            start += len(rows)
            yield rows, self._pad([ids[row] for row in rows], longest)

    def _pad(self, ids: list[list[int]], longest: int) -> dict[str, np.ndarray]:
        padded_BT = np.zeros((len(ids), longest), dtype=np.int64)
        mask_BT = np.zeros_like(padded_BT)
        for row, tokens in enumerate(ids):
            padded_BT[row, : len(tokens)] = tokens
            mask_BT[row, : len(tokens)] = 1
        return {"input_ids": padded_BT, "attention_mask": mask_BT}


def prepare(variant: str, given: Given) -> None:
    target = given.scratch / f"{variant}.xml"
    if target.exists():
        return
    network = AutoModel.from_pretrained(given.model, local_files_only=True, dtype=torch.float32)
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in _INPUTS}
    model = ov.convert_model(
        _Pooled(network.eval()), example_input=example, input=[(n, [-1, -1]) for n in _INPUTS]
    )
    if variant == "int8":
        model = _quantise(model, given)
    ov.save_model(model, target, compress_to_fp16=False)


def _quantise(model: Any, given: Given) -> Any:  # noqa: ANN401 (OpenVINO's types)
    import nncf

    tokens = _Tokens(given)
    one_by_one = [inputs for _, inputs in tokens.batches(given.sample[:_CALIBRATION_TEXTS], 1)]
    return nncf.quantize(
        model, nncf.Dataset(one_by_one), model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(one_by_one),
    )  # fmt: skip


def ways(variant: str, given: Given) -> dict[str, Way]:
    # Where int8 ends, the rest of the graph runs in what is tried here.
    precisions = ("f32", "bf16") if variant == "int8" else ("bf16",)
    arithmetic = "int8" if variant == "int8" else "bfloat16"
    return {
        f"{hint}, {budget} tokens a batch, {precision}": Way(
            partial(_start, run, variant, given, hint, precision, budget), arithmetic
        )
        for precision in precisions
        for hint, (run, budgets) in _WAYS.items()
        for budget in budgets
    }


def versions(variant: str) -> dict[str, str]:
    return installed("openvino", "nncf", "transformers")


def _start(
    run: Any,  # noqa: ANN401 (one of the two below)
    variant: str,
    given: Given,
    hint: str,
    precision: str,
    budget: int,
) -> Encode:
    return run(_compile(variant, given, hint, precision), _Tokens(given), budget)


def _compile(variant: str, given: Given, hint: str, precision: str) -> Any:  # noqa: ANN401
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": os.cpu_count() or 1,
    }
    core = ov.Core()
    return core.compile_model(core.read_model(given.scratch / f"{variant}.xml"), "CPU", config)


def _latency(compiled: Any, tokens: _Tokens, budget: int) -> Encode:  # noqa: ANN401
    request = compiled.create_infer_request()

    def encode(texts: list[str]) -> np.ndarray:
        rows_of, made = [], []
        for rows, inputs in tokens.batches(texts, budget):
            rows_of += rows
            made.append(request.infer(inputs)[0].copy())
        return _in_order(rows_of, made)

    return encode


def _throughput(compiled: Any, tokens: _Tokens, budget: int) -> Encode:  # noqa: ANN401
    queue = ov.AsyncInferQueue(compiled)

    def encode(texts: list[str]) -> np.ndarray:
        made: dict[int, tuple[list[int], np.ndarray]] = {}

        def keep(request: Any, numbered: tuple[int, list[int]]) -> None:  # noqa: ANN401
            made[numbered[0]] = numbered[1], request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for number, (rows, inputs) in enumerate(tokens.batches(texts, budget)):
            queue.start_async(inputs, (number, rows))
        queue.wait_all()
        finished = [made[number] for number in sorted(made)]
        return _in_order([r for rows, _ in finished for r in rows], [v for _, v in finished])

    return encode


def _in_order(rows: list[int], made: list[np.ndarray]) -> np.ndarray:
    joined_BD = np.concatenate(made)
    vectors_BD = np.empty_like(joined_BD)
    vectors_BD[rows] = joined_BD
    return vectors_BD


# One inference at a time wants larger batches than several side by side.
_WAYS = {
    "LATENCY": (_latency, (1024, 2048, 4096)),
    "THROUGHPUT": (_throughput, (512, 1024, 2048)),
}
