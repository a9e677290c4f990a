"""Cuts a text into chunks of a bounded number of tokens, each overlapping the one before.

A token here is an estimate that needs no model: up to six letters of a to z, three digits, three
letters of another alphabet, one character of a script without spaces, or any other character, each
with the blanks before it. On English text, Markdown and code that is 0.97 to 1.09 of what the
default model's tokenizer counts (measured on questions, sentences, this repository's own pages).

Chunks are exact slices: together they cover the text, and each begins exactly `overlap` tokens
before its predecessor's end. It ends where the text itself pauses, if it does so in the last
quarter of what may be taken.
"""

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIN_TOKENS, MAX_TOKENS = 100, 4096
# OpenAI's `auto`.
AUTO_TOKENS, AUTO_OVERLAP = 800, 400
# Of the tokens that a model reads: the estimate is no promise, and what is over is not encoded.
_AUTO_SHARE = 0.85

_TOKEN = re.compile(
    r"\s{0,16}(?:[A-Za-z]{1,6}|[0-9]{1,3}"
    # Han, kana, Thai, Lao, Khmer: written without spaces, about a token a character.
    r"|[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W\d_A-Za-z\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{1,3}"
    r"|\S)|\s{1,16}"
)
# Where a text pauses, the strongest first: before a heading or a page, after a paragraph, a line,
# a sentence, a word. The pause is where a match ends.
_PAUSES = (
    re.compile(r"(?=\n#{1,6} )|(?=\f)"),
    re.compile(r"(?=\n\s*\n)"),
    re.compile(r"(?=\n)"),
    re.compile(r"[.!?][\"')\]]*(?=\s)|[\u3002\uff01\uff1f]"),
    re.compile(r"(?=\s)"),
)

Ends = Sequence[int]


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a text is cut."""

    max_tokens: int
    overlap: int
    """At most half of `max_tokens`."""


def auto_chunking(model_tokens: int) -> Chunking:
    """Return how a text is cut when nobody said: as OpenAI does, if the model reads as much.

    Args:
        model_tokens: what the model reads of a text; 0: it does not say.
    """
    fits = int(model_tokens * _AUTO_SHARE) if model_tokens else AUTO_TOKENS
    max_tokens = max(MIN_TOKENS, min(AUTO_TOKENS, fits))
    return Chunking(max_tokens, max_tokens // 2)


def token_ends(text: str) -> Ends:
    """Return where each token of a text ends."""
    return array("Q", (match.end() for match in _TOKEN.finditer(text)))


def cut(text: str, ends: Ends, chunking: Chunking) -> Iterator[str]:
    """Yield the chunks of a text.

    Args:
        text: any.
        ends: its `token_ends`.
        chunking: how long, and how much again.

    >>> text = "One two three. Four five six."
    >>> list(cut(text, token_ends(text), Chunking(5, 1)))
    ['One two three.', '. Four five six.']
    """
    begin, total = 0, len(ends)
    while begin < total:
        end = min(begin + chunking.max_tokens, total)
        if end < total:
            # Never less than three quarters: more than the overlap, so that each chunk goes on.
            least = begin + max(chunking.max_tokens * 3 // 4, chunking.overlap + 1)
            end = _pause(text, ends, min(least, end), end)
        yield text[ends[begin - 1] if begin else 0 : ends[end - 1]]
        if end == total:
            return
        begin = end - chunking.overlap


def _pause(text: str, ends: Ends, least: int, most: int) -> int:
    """Return the number of tokens, from `least` to `most`, at which the text pauses most."""
    low, high = ends[least - 1], ends[most - 1]
    # One character more shows whether a word goes on.
    window = text[low : high + 1]
    for pause in _PAUSES:
        last = None
        for last in pause.finditer(window):  # noqa: B007 (the last one is wanted)
            pass
        if last is not None and low + last.end() <= high:
            return bisect_right(ends, low + last.end(), least - 1, most)
    return most
