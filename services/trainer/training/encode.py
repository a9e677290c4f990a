"""Encoding for training: every text once, and never again after a restart.

Texts go in chunks; each finished chunk is a file in the job's folder, so that a killed job
encodes at most one chunk twice.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from services.shared.model import Role, TextModel
from services.shared.vectors import Array
from services.trainer.training.checkpoint import write_atomic

CHUNK_TEXTS = 2048


def encode_kept(
    model: TextModel,
    texts: Sequence[str],
    role: Role,
    folder: Path,
    on_progress: Callable[[int], None],
) -> Array:
    """Encode texts, keeping each chunk's vectors in `folder`.

    Args:
        model: must be the same, in the same precision, for one folder.
        texts: the same.
        role: whose prompt to use.
        folder: made if it is not there.
        on_progress: called with the number of texts done; what it raises stops the work.

    Returns:
        vectors_BD: float32, after the pre-op, rows as `texts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [np.empty((0, model.full), dtype=np.float32)]
    for begin in range(0, len(texts), CHUNK_TEXTS):
        chunk = texts[begin : begin + CHUNK_TEXTS]
        path = folder / f"{begin:09d}.npy"
        if path.exists():
            chunks.append(np.load(path, allow_pickle=False))
        else:

            def on_chunk(done: int, begin: int = begin) -> None:
                on_progress(begin + done)

            chunks.append(model.encode_texts(chunk, role, on_progress=on_chunk))
            data = io.BytesIO()
            np.save(data, chunks[-1], allow_pickle=False)
            write_atomic(path, data.getvalue())
        on_progress(begin + len(chunk))
    return np.concatenate(chunks)
