"""Infinity: its own engine, with its own queue and batching, in this process.

torch (with BetterTransformer and without, float32 and bfloat16) and ONNX through optimum.
"""

import asyncio
import json
import shutil
from functools import partial
from typing import Any

import numpy as np
import torch
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from transformers import AutoModel

from bench.peers.engine import Encode, Given, Way, installed

_BATCH = 32
_MAX_QUEUED = 16_000  # it refuses what its queue cannot hold


def prepare(variant: str, given: Given) -> None:
    target = given.scratch / "onnx" / "model.onnx"
    if variant != "optimum" or target.exists():
        return
    shutil.copytree(given.model, given.scratch, dirs_exist_ok=True)
    target.parent.mkdir(exist_ok=True)
    # It cuts texts at the number of positions.
    path = given.scratch / "config.json"
    config = json.loads(path.read_text()) | {"max_position_embeddings": given.max_tokens}
    path.write_text(json.dumps(config))
    network = AutoModel.from_pretrained(
        given.model, local_files_only=True, attn_implementation="eager", return_dict=False
    )
    # Not optimum's own export: that of its last version with BetterTransformer no longer works
    # with this torch.
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        network.eval(),
        tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names),
        str(target),
        input_names=names,
        output_names=["last_hidden_state", "pooler_output"],
        dynamic_axes={name: {0: "B", 1: "T"} for name in [*names, "last_hidden_state"]},
        opset_version=17,
        dynamo=False,
    )


def ways(variant: str, given: Given) -> dict[str, Way]:
    if variant == "optimum":
        options = {"model_name_or_path": str(given.scratch), "engine": "optimum"}
        return {
            f"ONNX, batch {size}": Way(
                partial(_start, options | {"batch_size": size, "pooling_method": "mean"}),
                "float32",
            )
            for size in (_BATCH, 2 * _BATCH)
        }
    return {
        f"{dtype}{', BetterTransformer' if better else ''}, batch {_BATCH}": Way(
            partial(
                _start,
                {
                    "model_name_or_path": str(given.model),
                    "engine": "torch",
                    "dtype": dtype,
                    "bettertransformer": better,
                    "batch_size": _BATCH,
                },
            ),
            dtype,
        )
        for dtype in ("float32", "bfloat16")
        for better in (True, False)
    }


def versions(variant: str) -> dict[str, str]:
    return installed(
        "infinity-emb", "sentence-transformers", "torch", "transformers", "optimum", "onnxruntime"
    )


def _start(options: dict[str, Any]) -> Encode:
    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(device="cpu", model_warmup=False, trust_remote_code=False, **options)
    )
    loop.run_until_complete(engine.astart())

    async def embed(texts: list[str]) -> list[np.ndarray]:
        made: list[np.ndarray] = []
        for start in range(0, len(texts), _MAX_QUEUED):
            vectors, _ = await engine.embed(sentences=texts[start : start + _MAX_QUEUED])
            made += vectors
        return made

    return lambda texts: np.stack(loop.run_until_complete(embed(texts)))
