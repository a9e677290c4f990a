"""Texts as terms: what BM25 asks of a document's numbers, and words that are one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.hybrid.idf import TermCounts
from services.router.hybrid.text_index import (
    LANGUAGES,
    TextIndex,
    check_text_index,
    document_terms,
    query_terms,
)
from services.shared.errors import InvalidRequest

ANY = TextIndex("any")
WORDS = st.lists(st.sampled_from(["red", "green", "blue", "über", "北京"]), max_size=30)


@given(WORDS)
def test_each_word_is_a_term_once(words):
    """A document has one number above 0 for each different word, none for a text of no words."""
    terms = document_terms(" ".join(words), ANY)
    expected = set(query_terms(" ".join(words), ANY))
    assert set(terms.indices) == expected
    assert len(terms.indices) == len(expected) == len(terms.values)
    assert all(value > 0 for value in terms.values)


@given(WORDS, st.integers(1, 5))
def test_a_word_counts_more_the_oftener_and_less_in_a_longer_text(words, times):
    """The two things that BM25 knows of a document."""
    [red] = query_terms("red", ANY)

    def red_in(text: str) -> float:
        terms = document_terms(text, ANY)
        return dict(zip(terms.indices, terms.values, strict=True))[red]

    rest = [word for word in words if word != "red"]
    once = red_in(" ".join(["red", *rest]))
    assert red_in(" ".join(["red"] * (times + 1) + rest)) > once
    assert red_in(" ".join(["red", *rest, "green"])) < once


def test_bm25_is_that_of_the_book():
    """Robertson and Zaragoza's equation 3.15, worked out: k1 1.2, b 0.75, mean length 256."""
    terms = document_terms("red red green", ANY)
    found = dict(zip(terms.indices, terms.values, strict=True))
    [red] = query_terms("red", ANY)
    norm = 1.2 * (0.25 + 0.75 * 3 / 256)
    assert found[red] == pytest.approx(2 * 2.2 / (2 + norm), rel=1e-5)


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("english", "dogs", "dog"),
        ("german", "Hunde", "Hund"),
        ("french", "chevaux", "cheval"),
        ("russian", "собаки", "собака"),
    ],
)
def test_a_language_knows_its_endings_and_stop_words(language, one, other):
    """Forms of a word are one term in their own language, and two in `any`."""
    assert query_terms(one, TextIndex(language)) == query_terms(other, TextIndex(language))
    assert query_terms(one, ANY) != query_terms(other, ANY)
    assert not query_terms("the of and", TextIndex("english"))
    assert len(query_terms("the of and", ANY)) == 3


@pytest.mark.parametrize("language", ["any", "chinese", "japanese"])
def test_words_without_spaces_are_told_apart(language):
    """A query of one word finds a text that has it within."""
    text_index = TextIndex(language)
    assert set(query_terms("北京", text_index)) & set(query_terms("我住在北京市", text_index))


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_words_too(language):
    """Of a part, a standard, a year: in every language, also between signs without spaces."""
    text_index = TextIndex(language)
    for query, text in (("117", "fuse F-117 blows"), ("9001", "ISO 9001"), ("2024", "第2024年")):
        if language in ("any", "chinese", "japanese") or "第" not in text:
            found = set(document_terms(text, text_index).indices)
            assert set(query_terms(query, text_index)) & found, (query, text)
    assert not set(query_terms("118", text_index)) & set(
        document_terms("fuse F-117 blows", text_index).indices
    )


def test_every_language_that_is_offered_can_be_had():
    """None of them fails when it is first used."""
    for language in LANGUAGES:
        check_text_index(TextIndex(language))
        assert document_terms("nobody expects xylophones", TextIndex(language)).indices
    with pytest.raises(InvalidRequest, match="language must be one of any, arabic"):
        check_text_index(TextIndex("klingon"))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_rarer_term_weighs_more(num_documents, one, other):
    """Weights are above 0, and fall with the number of documents that hold the term."""
    counts = TermCounts(num_documents, {1: min(one, num_documents), 2: min(other, num_documents)})
    assert counts.idf(1) > 0
    if counts.counts[1] < counts.counts[2]:
        assert counts.idf(1) > counts.idf(2)
    assert counts.idf(3) >= counts.idf(1)
