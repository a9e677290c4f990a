"""Files of vectors: what is no such file is refused in one clear sentence, and never unpickled."""

import io
import pickle

import numpy as np
import pytest

from services.shared.errors import InvalidRequest
from services.trainer.data.sample import MIN_VECTORS, check_vectors, digest, read_sample

ROWS, FULL = MIN_VECTORS + 200, 24


def vectors(rows=ROWS, full=FULL, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, full)).astype(np.float32)


def with_row(row, value):
    changed = vectors()
    changed[row] = value
    return changed


def npy(array, **options) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **options)
    return data.getvalue()


def npz(array) -> bytes:
    data = io.BytesIO()
    np.savez(data, array)
    return data.getvalue()


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Trap:
    """Unpickling this ends the test run."""

    def __reduce__(self):
        return pytest.exit, ("unpickled",)


GOOD = npy(vectors())
WRONG = {
    "cut off": (GOOD[:-1], "was it cut off"),
    "cut in its header": (GOOD[:40], "cut off in its header"),
    "with more behind": (GOOD + b"x", "its header wants"),
    "Python objects": (npy(np.array([[Trap()] * 24] * 3), allow_pickle=True), "Python objects"),
    "a pickle": (pickle.dumps(vectors()), "not an .npy file"),
    "an .npz": (npz(vectors()), "not an .npy file"),
    "text": (b'{"anchor": "a", "positive": "b"}\n', "not an .npy file"),
    "a broken header": (header(b"{'descr': '<f4', 'shape': (((((\n"), "not an .npy file"),
    "a negative shape": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 24), }\n"),
        "[-5, 24], not [N, D]",
    ),
    "a huge shape": (
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999), }\n"),
        "its header wants",
    ),
    "float64": (npy(vectors().astype(np.float64)), "<f8, not <f4"),
    "float16": (npy(vectors().astype(np.float16)), "<f2, not <f4"),
    "big-endian": (npy(vectors().astype(">f4")), ">f4, not <f4"),
    "1-D": (npy(vectors().ravel()), "not [N, D]"),
    "3-D": (npy(vectors()[None]), "not [N, D]"),
    "Fortran order": (npy(np.asfortranarray(vectors())), "Fortran order"),
    "NaN": (npy(with_row(1100, np.nan)), "row 1100 holds NaN or infinity"),
    "infinity": (npy(with_row(7, -np.inf)), "row 7 holds NaN or infinity"),
    "a row of zeros": (npy(with_row(1199, 0)), "row 1199 holds only zeros"),
    "too few": (npy(vectors(MIN_VECTORS - 1)), "holds 999 vectors"),
    "none": (npy(vectors(0)), "holds 0 vectors"),
    "too narrow": (npy(vectors(full=8)), "8 numbers wide"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_with_what_would_be_accepted(name, tmp_path):
    """The user's name for it, what is wrong, and what is accepted; in one line."""
    data, part = WRONG[name]
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        check_vectors(path, "mine.npy", "training_file")
    assert caught.value.message.startswith("mine.npy: ")
    assert part in caught.value.message
    assert "little-endian float32 [N, D]" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.param == "training_file"


def test_a_good_file_is_accepted(tmp_path):
    """Its shape comes back; numbers of any length do, as they are scaled."""
    path = tmp_path / "x.npy"
    path.write_bytes(npy(vectors() * np.float32(1e30)))
    assert check_vectors(path, "mine.npy", "training_file") == (ROWS, FULL)
    data = read_sample(path, None, 0)
    lengths = np.linalg.norm(np.concatenate([data.documents_ND, data.held_out_QD]), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_no_held_out_query_is_learned_from(tmp_path):
    """With queries half of them, without a tenth of the documents; the same on every reading."""
    documents, queries = tmp_path / "d.npy", tmp_path / "q.npy"
    documents.write_bytes(GOOD)
    queries.write_bytes(npy(vectors(50, seed=1)))

    def rows(array):
        return {row.tobytes() for row in array}

    alone = read_sample(documents, None, 3)
    assert alone.queries_QD is None
    assert len(alone.held_out_QD) == ROWS // 10
    assert not rows(alone.held_out_QD) & rows(alone.documents_ND)
    assert len(rows(alone.held_out_QD) | rows(alone.documents_ND)) == ROWS
    asked = read_sample(documents, queries, 3)
    assert len(asked.documents_ND) == ROWS
    assert len(asked.held_out_QD) == len(asked.queries_QD) == 25
    assert not rows(asked.held_out_QD) & rows(asked.queries_QD)
    assert rows(read_sample(documents, queries, 3).held_out_QD) == rows(asked.held_out_QD)
    assert rows(read_sample(documents, queries, 4).held_out_QD) != rows(asked.held_out_QD)
    assert digest(documents) != digest(queries)
