"""The normalised form: what is written comes back."""

import pytest

from services.trainer.data.examples import Labelled, Scored, read_examples, write_examples
from services.trainer.data.pairs import Pair


@pytest.mark.parametrize(
    ("kind", "examples"),
    [
        ("pairs", (Pair("a", "b"), Pair("ä\u2028", "c", ("d", "e"), "de"))),
        ("scored", (Scored("a", "b", 0.1), Scored("a", "c", -3.0))),
        ("labelled", (Labelled("a", "1"), Labelled("b\n", "spam"))),
    ],
)
def test_what_is_written_comes_back(tmp_path, kind, examples):
    """Every kind, with line ends inside of texts."""
    write_examples(tmp_path / "x", examples)
    assert read_examples(tmp_path / "x", kind) == examples
