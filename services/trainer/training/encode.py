"""Encoding for training: every text and picture once, and never again after a restart.

They go in chunks; each finished chunk is a file in the job's folder, so that a killed job
encodes at most one chunk twice.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from services.shared.errors import InvalidRequest
from services.shared.images import ImageTokens
from services.shared.model import Role, TextModel
from services.shared.vectors import Array
from services.trainer.data.pictures import Item, Picture
from services.trainer.training.checkpoint import write_atomic

CHUNK_TEXTS = 2048
_CHUNK_PICTURES = 128  # with any among them: one takes as long as many texts


def encode_kept(
    model: TextModel,
    items: Sequence[Item],
    role: Role,
    folder: Path,
    on_progress: Callable[[int], None],
) -> Array:
    """Encode texts and pictures, keeping each chunk's vectors in `folder`.

    Args:
        model: must be the same, in the same precision, for one folder.
        items: the same.
        role: whose prompt to use.
        folder: made if it is not there.
        on_progress: called with the number of them done; what it raises stops the work.

    Returns:
        vectors_BD: float32, after the pre-op, rows as `items`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [np.empty((0, model.full), dtype=np.float32)]
    size = CHUNK_TEXTS if all(isinstance(item, str) for item in items) else _CHUNK_PICTURES
    for begin in range(0, len(items), size):
        chunk = items[begin : begin + size]
        path = folder / f"{begin:09d}.npy"
        if path.exists():
            chunks.append(np.load(path, allow_pickle=False))
        else:

            def on_chunk(done: int, begin: int = begin) -> None:
                on_progress(begin + done)

            chunks.append(encode(model, chunk, role, on_chunk))
            data = io.BytesIO()
            np.save(data, chunks[-1], allow_pickle=False)
            write_atomic(path, data.getvalue())
        on_progress(begin + len(chunk))
    return np.concatenate(chunks)


def encode(
    model: TextModel,
    items: Sequence[Item],
    role: Role,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Array:
    """Encode texts, over-long ones cut, and then pictures, one at a time.

    Returns:
        vectors_BD: as `encode_kept`.

    Raises:
        InvalidRequest: a picture does not suit the model.
    """
    vectors_BD = np.empty((len(items), model.full), dtype=np.float32)
    texts = {row: item for row, item in enumerate(items) if isinstance(item, str)}
    if texts:
        found_BD = model.encode_texts(list(texts.values()), role, on_progress=on_progress)
        vectors_BD[list(texts)] = found_BD
    pictures = {row: item for row, item in enumerate(items) if isinstance(item, Picture)}
    for done, (row, picture) in enumerate(pictures.items(), start=len(texts) + 1):
        vectors_BD[row] = model.encode([read_picture(model, picture, role)])[0]
        on_progress(done)
    return vectors_BD


def read_picture(model: TextModel, picture: Picture, role: Role) -> ImageTokens:
    """Read a picture as the model takes it.

    Raises:
        InvalidRequest: it gives more tokens than the model reads, or has an impossible shape.
    """
    try:
        return model.read_image(picture.path.read_bytes(), role)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"the picture with the sha256 {picture.digest}: {error.message}", "training_file"
        ) from error
