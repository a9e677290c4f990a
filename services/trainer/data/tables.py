"""Rows of Parquet files, and of the Arrow streams that Hugging Face's datasets are saved as.

Only the wanted columns are read. The bytes are checked before they are followed: a damaged or
hostile file gives a reason, never an error of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

_BATCH_ROWS = 256
_MAX_UNPACKED_BYTES = 32 * 2**30
"""Of a Parquet file whose columns are wanted; a small file can claim to unpack to anything."""


def read_parquet(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[dict[str, Any] | str]:
    """Read rows; a reason instead, if the rest cannot be read.

    Args:
        path: where the file is.
        choose: which columns to read, of those that there are.
    """
    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
            if sum(sizes) > _MAX_UNPACKED_BYTES or min(sizes, default=0) < 0:
                yield f"would unpack to more than {_MAX_UNPACKED_BYTES:,} bytes"
                return
            columns = list(choose(file.schema_arrow.names))
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                yield from _rows(batch)
    except (pyarrow.ArrowException, ValueError, OSError, OverflowError):
        yield "not Parquet, or damaged from here on"


def read_arrow(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[dict[str, Any] | str]:
    """Read rows of an Arrow stream; a reason instead, if the rest cannot be read."""
    try:
        with pyarrow.memory_map(str(path)) as source, ipc.open_stream(source) as stream:
            columns = list(choose(stream.schema.names))
            for batch in stream:
                chosen = batch.select(columns)
                chosen.validate(full=True)  # offsets could point anywhere
                for begin in range(0, chosen.num_rows, _BATCH_ROWS):
                    yield from _rows(chosen.slice(begin, _BATCH_ROWS))
    except (pyarrow.ArrowException, ValueError, OSError, OverflowError):
        yield "not an Arrow stream, or damaged from here on"


def _rows(batch: Any) -> list[dict[str, Any]]:  # noqa: ANN401 (pyarrow has no types)
    if not batch.num_columns:  # nothing that was wanted is there: each row shall say so
        return [{} for _ in range(batch.num_rows)]
    found: list[dict[str, Any]] = batch.to_pylist()
    return found
