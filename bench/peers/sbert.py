"""sentence-transformers: plain torch, its OpenVINO backend and its ONNX backend.

Everything stays offline: backends are exported from the local folder with the library's own
functions, and calibrated on the bench's own sample.
"""

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from bench.peers.engine import Encode, Given, Way, installed

Loader = Callable[[], SentenceTransformer]
_BATCHES = (16, 32, 64)
_STATIC_BATCHES = (32, 64, 256, 1024)


def prepare(variant: str, given: Given) -> None:
    if variant in _EXPORTS:
        _EXPORTS[variant](given)


def ways(variant: str, given: Given) -> dict[str, Way]:
    if variant == "float32":
        # Exactly what the library's first example does.
        return {"its defaults (batch 32)": Way(lambda: _encode(_torch(given), 32), "float32")}
    if variant == "static":
        loaders = {"": (lambda: _load(given), "float32")}
    elif variant == "bfloat16":
        loaders = {"": (lambda: _torch(given).bfloat16(), "bfloat16")}
    else:
        loaders = _backend_loaders(variant, given)
    return {
        f"{label}batch {size}": Way(lambda load=load, size=size: _encode(load(), size), arithmetic)
        for label, (load, arithmetic) in loaders.items()
        for size in (_STATIC_BATCHES if variant == "static" else _BATCHES)
    }


def versions(variant: str) -> dict[str, str]:
    extra = {"openvino": ("openvino", "optimum-intel"), "onnx": ("onnxruntime", "optimum-onnx")}
    more = extra.get(variant.split("-")[0], ())
    return installed("sentence-transformers", "torch", "transformers", *more)


def _encode(model: SentenceTransformer, batch_size: int) -> Encode:
    return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False)


def _load(given: Given) -> SentenceTransformer:
    return SentenceTransformer(str(given.model), device="cpu", local_files_only=True)


def _torch(given: Given) -> SentenceTransformer:
    return _cut(_load(given), given)


def _cut(model: SentenceTransformer, given: Given) -> SentenceTransformer:
    model.max_seq_length = min(model.max_seq_length or given.max_tokens, given.max_tokens)
    return model


# The two backends.


def _backend_loaders(variant: str, given: Given) -> dict[str, tuple[Loader, str]]:
    """Name the settings that are tried for a backend, beside its batch sizes."""

    def load(**options: object) -> Loader:
        return lambda: _backend(given, variant, options)

    if variant == "openvino":
        bf16 = {"INFERENCE_PRECISION_HINT": "bf16"}
        return {"": (load(ov_config={}), "float32"), "bf16, ": (load(ov_config=bf16), "bfloat16")}
    return {"": (load(), "int8" if "qint8" in variant else "float32")}


def _file(variant: str) -> str:
    return {
        "openvino": "openvino/openvino_model.xml",
        "openvino-qint8": "openvino/openvino_model_qint8_quantized.xml",
        "onnx": "onnx/model_O2.onnx",
        "onnx-qint8": f"onnx/model_qint8_{_onnx_target()}.onnx",
    }[variant]


def _onnx_target() -> str:
    """The library offers one kind of int8 for each family of processors."""
    if platform.machine() in {"arm64", "aarch64"}:
        return "arm64"
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "avx512_vnni" if "avx512_vnni" in flags else "avx2"


def _backend(given: Given, variant: str, options: dict[str, Any]) -> SentenceTransformer:
    backend = variant.split("-")[0]
    kwargs = {"file_name": _file(variant), **options}
    if backend == "onnx":
        kwargs["provider"] = "CPUExecutionProvider"
    model = SentenceTransformer(
        str(given.scratch), backend=backend, device="cpu", local_files_only=True,
        model_kwargs=kwargs,
    )  # fmt: skip
    return _cut(model, given)


def _export(given: Given, backend: str) -> SentenceTransformer:
    """Copy the folder and put the backend's own file into it."""
    shutil.copytree(given.model, given.scratch, dirs_exist_ok=True)
    kwargs = {"provider": "CPUExecutionProvider"} if backend == "onnx" else {}
    model = SentenceTransformer(
        str(given.scratch), backend=backend, device="cpu", local_files_only=True,
        model_kwargs={"export": True, **kwargs},
    )  # fmt: skip
    model.save_pretrained(str(given.scratch))
    return model


def _export_openvino(given: Given) -> None:
    if not (given.scratch / _file("openvino")).exists():
        _export(given, "openvino")


def _export_openvino_qint8(given: Given) -> None:
    if (given.scratch / _file("openvino-qint8")).exists():
        return
    from sentence_transformers import export_static_quantized_openvino_model

    model = _export(given, "openvino")
    # `datasets` reads a local folder under the name of its files' format.
    folder = given.scratch / "calibration"
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"sentence": text}) for text in given.sample]
    (folder / "train.jsonl").write_text("\n".join(lines))
    export_static_quantized_openvino_model(
        model, None, str(given.scratch), dataset_name=str(folder), dataset_config_name="default",
        dataset_split="train", column_name="sentence",
    )  # fmt: skip


def _export_onnx(given: Given) -> None:
    if (given.scratch / _file("onnx")).exists():
        return
    from sentence_transformers import export_optimized_onnx_model

    export_optimized_onnx_model(_export(given, "onnx"), "O2", str(given.scratch))


def _export_onnx_qint8(given: Given) -> None:
    if (given.scratch / _file("onnx-qint8")).exists():
        return
    from sentence_transformers import export_dynamic_quantized_onnx_model

    export_dynamic_quantized_onnx_model(_export(given, "onnx"), _onnx_target(), str(given.scratch))


_EXPORTS: dict[str, Callable[[Given], None]] = {
    "openvino": _export_openvino,
    "openvino-qint8": _export_openvino_qint8,
    "onnx": _export_onnx,
    "onnx-qint8": _export_onnx_qint8,
}
