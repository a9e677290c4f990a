"""Texts as the terms they hold: what a search by words finds them by.

A document's vector has a number for each of its terms, which grows with how often the term occurs
and shrinks with the length of the text; how rare a term is, the query's side knows (`idf.py`). So
what is stored stays true while a collection grows, and one tenant's documents weigh nothing in
another's searches.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond",
section 3; k1, b and the mean length as Qdrant has them.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import qdrant_edge as edge

from services.shared.errors import InvalidRequest

ANY_LANGUAGE = "any"
"""No stop words and no stems: words as they are, in any script."""

_LANGUAGES = {
    name.lower(): getattr(edge.Language, name)
    for name in dir(edge.Language)
    if not name.startswith("_")
}
# Words stand without spaces between them, or may.
_UNSPACED = frozenset({ANY_LANGUAGE, "chinese", "japanese"})
# The tokeniser that knows their words drops numbers, unless there are letters in them.
_NUMBER = re.compile(r"(?<![A-Za-z0-9])([0-9]+)(?![A-Za-z0-9])")

LANGUAGES = (ANY_LANGUAGE, *sorted(_LANGUAGES))


@dataclass(frozen=True, slots=True)
class TextIndex:
    """How a collection's texts are kept for search by words."""

    language: str = "english"
    """One of `LANGUAGES`: which words count for nothing, and which endings."""

    @property
    def vector_name(self) -> str:
        """Name of the sparse vector in the engine."""
        return f"bm25-{self.language}"


@dataclass(frozen=True, slots=True)
class Terms:
    """A sparse vector: a number for each term."""

    indices: list[int]
    """Digests of the terms, 32 bits, each once."""
    values: list[float]


def check_text_index(text_index: TextIndex) -> None:
    """Refuse a language that there is not; InvalidRequest."""
    if text_index.language not in LANGUAGES:
        raise InvalidRequest(
            f"text_index: language must be one of {', '.join(LANGUAGES)}, "
            f"got {text_index.language!r}",
            "text_index",
        )


def document_terms(text: str, text_index: TextIndex) -> Terms:
    """Return a document's vector, 30 to 50 microseconds a text; a text of no words has no terms."""
    vector = _analyzer(text_index.language).embed_document(_readable(text, text_index))
    return Terms(list(vector.indices), list(vector.values))


def query_terms(text: str, text_index: TextIndex) -> list[int]:
    """Return the terms that a query asks for, each once."""
    vector = _analyzer(text_index.language).embed_query(_readable(text, text_index))
    return list(vector.indices)


def _readable(text: str, text_index: TextIndex) -> str:
    return _NUMBER.sub(r" number\1 ", text) if text_index.language in _UNSPACED else text


@lru_cache(maxsize=len(LANGUAGES))
def _analyzer(language: str) -> edge.Bm25:
    # It holds Python's lock while it works, which is short; nothing else of the engine is used
    # outside its workers.
    if language == ANY_LANGUAGE:
        return edge.Bm25(
            edge.Bm25Config(
                tokenizer=edge.TokenizerType.Multilingual,
                stopwords=edge.StopwordsSet(),
                stemmer=edge.DisabledStemmer(),
            )
        )
    tokenizer = edge.TokenizerType.Multilingual if language in _UNSPACED else None
    return edge.Bm25(edge.Bm25Config(language=language, tokenizer=tokenizer))
