"""A sample of vectors: an .npy file in, checked rows and a held-out split out.

What nesting learns from. The file is read through a memory map and never unpickled; every
problem is found before a job is queued. Knows nothing of models or jobs.

Shapes: N vectors of documents, Q of queries, D full width.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from services.shared.errors import InvalidRequest
from services.shared.vectors import Array, normalize

MIN_VECTORS = 1000
"""Fewer say little about the others of their collection."""
MAX_VECTORS = 200_000
"""A sample of so many is plenty: see `nest.py` for what few do."""
MIN_QUERIES = 20
MIN_WIDTH, MAX_WIDTH = 16, 4096  # beyond, the principal axes alone take minutes
MAX_HELD_OUT = 500
_CHUNK_ROWS = 8192
_READ_ROWS = 512  # they stay in the processor's cache while they are scaled
# Of the format's versions those that a matrix of floats is written in.
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What to learn from and what to measure on, rows of unit length; no query is in both."""

    documents_ND: Array
    queries_QD: Array | None
    """To learn from; None: documents stand in for queries."""
    held_out_QD: Array
    """Queries to measure on."""


def check_vectors(
    path: Path, filename: str, param: str, at_least: int = MIN_VECTORS
) -> tuple[int, int]:
    """Check a file of vectors; return how many there are and how wide.

    Args:
        path: where it is.
        filename: what the user calls it, for the error.
        param: the request's field, for the error.
        at_least: how many vectors it must hold.

    Raises:
        InvalidRequest: says what is wrong, and what would be accepted.
    """
    try:
        vectors_ND = _open(path)
        _check_shape(vectors_ND, at_least)
        for begin, chunk_ND in _chunks(vectors_ND):
            _check_rows(chunk_ND, begin)
    except _WrongFileError as error:
        raise InvalidRequest(
            f"{filename}: {error}; an .npy file of little-endian float32 [N, D] in C order is "
            f"accepted, N {at_least} to {MAX_VECTORS}, D {MIN_WIDTH} to {MAX_WIDTH}, all numbers "
            "finite, no row of zeros",
            param,
        ) from error
    return vectors_ND.shape


def read_sample(documents: Path, queries: Path | None, seed: int) -> Sample:
    """Read checked files and hold queries out to measure on.

    Of the queries half is held out, 500 at most; without queries, a tenth of the documents, 500
    at most, stands in for them. The same files and seed always give the same split.
    """
    documents_ND = _open(documents)
    if queries is None:
        kept, held_out = _hold_out(len(documents_ND), 10, seed)
        return Sample(_read_rows(documents_ND, kept), None, _read_rows(documents_ND, held_out))
    queries_QD = _open(queries)
    kept, held_out = _hold_out(len(queries_QD), 2, seed)
    return Sample(
        _read_rows(documents_ND, np.arange(len(documents_ND))),
        _read_rows(queries_QD, kept),
        _read_rows(queries_QD, held_out),
    )


def _hold_out(count: int, share: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows to keep and those to hold out, one of `share`, each ascending."""
    order = np.random.default_rng(seed).permutation(count)
    num_held_out = min(count // share, MAX_HELD_OUT)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _read_rows(vectors_ND: Array, rows: Rows) -> Array:
    """Return some rows at unit length; in chunks, as each pass over all of them takes a second."""
    read_ND = np.empty((len(rows), vectors_ND.shape[1]), dtype=np.float32)
    for begin in range(0, len(rows), _READ_ROWS):
        chunk = slice(begin, begin + _READ_ROWS)
        read_ND[chunk] = normalize(vectors_ND[rows[chunk]])
    return read_ND


def digest(documents: Path) -> str:
    """Return the sha256 of the vectors' bytes in their order, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for _, chunk_ND in _chunks(_open(documents)):
        state.update(np.ascontiguousarray(chunk_ND).tobytes())
    return state.hexdigest()


class _WrongFileError(Exception):
    """What is wrong with a file of vectors."""


def _open(path: Path) -> Array:
    """Map a file of vectors; never unpickles.

    Raises:
        _WrongFileError: it is none.
    """
    with path.open("rb") as stream:
        try:
            read_header = _HEADERS[npy.read_magic(stream)]
            shape, is_fortran, dtype = read_header(stream)
        except Exception as error:  # a header is an expression: it can be wrong in many ways
            raise _WrongFileError("it is not an .npy file, or cut off in its header") from error
        begin = stream.tell()
    if dtype.hasobject:
        raise _WrongFileError("it holds Python objects, which are never read")
    if dtype != np.dtype("<f4"):
        raise _WrongFileError(f"its numbers are {dtype.str}, not <f4")
    if len(shape) != 2 or min(shape) < 0:
        raise _WrongFileError(f"its shape is {list(shape)}, not [N, D]")
    if is_fortran:
        raise _WrongFileError("it is in Fortran order")
    wanted, found = begin + 4 * shape[0] * shape[1], path.stat().st_size
    if wanted != found:
        raise _WrongFileError(f"its header wants {wanted} bytes, it has {found}: was it cut off?")
    if not shape[0] * shape[1]:  # nothing can be mapped
        return np.empty(shape, dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r", offset=begin, shape=shape)


def _check_shape(vectors_ND: Array, at_least: int) -> None:
    count, full = vectors_ND.shape
    if not at_least <= count <= MAX_VECTORS:
        raise _WrongFileError(f"it holds {count} vectors")
    if not MIN_WIDTH <= full <= MAX_WIDTH:
        raise _WrongFileError(f"its vectors are {full} numbers wide")


def _check_rows(chunk_ND: Array, begin: int) -> None:
    finite_N = np.isfinite(chunk_ND).all(axis=1)
    if not finite_N.all():
        raise _WrongFileError(f"row {begin + int(finite_N.argmin())} holds NaN or infinity")
    filled_N = chunk_ND.any(axis=1)
    if not filled_N.all():
        raise _WrongFileError(f"row {begin + int(filled_N.argmin())} holds only zeros")


def _chunks(vectors_ND: Array) -> Iterator[tuple[int, Array]]:
    for begin in range(0, len(vectors_ND), _CHUNK_ROWS):
        yield begin, vectors_ND[begin : begin + _CHUNK_ROWS]
