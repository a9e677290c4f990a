"""What is text in a file: plain text, Markdown, code, HTML, JSON, JSON lines or PDF.

In: a file on disk and its name. Out: the text, in parts (a page of a PDF is one). Runs in a process
of its own (`reader_worker.py`), as a hostile file may take all the time and memory there is.
"""

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

PLAIN = (
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".log", ".csv", ".tsv", ".xml", ".yaml",
    ".yml", ".toml", ".ini", ".cfg", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".css", ".go",
    ".java", ".js", ".jsx", ".ts", ".tsx", ".kt", ".lua", ".php", ".pl", ".py", ".r", ".rb", ".rs",
    ".scala", ".sh", ".sql", ".swift",
)  # fmt: skip
_MARKED = (".html", ".htm", ".json", ".jsonl", ".ndjson", ".pdf")
# Whose text stands for itself is not shown; what they begin or end is a line of its own.
_SILENT = {"script", "style", "template", "noscript", "svg", "iframe", "object"}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figure", "footer",
    "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p",
    "pre", "section", "table", "title", "tr", "ul",
}  # fmt: skip


class UnsupportedFile(Exception):
    """A kind of file that is not read; the message says which are."""


class InvalidFile(Exception):
    """Not what its name says, or without text; the message says what is wrong."""


def read_parts(path: Path, filename: str, max_pages: int) -> Iterator[str]:
    """Yield the parts of a file's text, those without text left out.

    Raises:
        UnsupportedFile, InvalidFile: see there; neither says anything of the contents.
    """
    extension = Path(filename).suffix.lower()
    if extension == ".pdf":
        parts = _read_pdf(path, max_pages)
    else:
        parts = iter([_read_text(path, extension)])
    is_empty = True
    for part in parts:
        tidy = _tidy(part)
        if tidy.strip():
            is_empty = False
            yield tidy
    if is_empty:
        raise InvalidFile("the file holds no text; scanned pages are not read")


def _read_text(path: Path, extension: str) -> str:
    if extension and extension not in PLAIN + _MARKED:
        raise UnsupportedFile(
            f"files {extension[:16]} are not read; accepted are {', '.join(_MARKED)} and as plain "
            f"text {', '.join(PLAIN)}, or a text file without an extension"
        )
    text = _decode(path.read_bytes())
    readers: dict[str, Callable[[str], str]] = {
        ".html": _from_html, ".htm": _from_html, ".json": _from_json,
        ".jsonl": _from_json_lines, ".ndjson": _from_json_lines,
    }  # fmt: skip
    try:
        return readers.get(extension, str)(text)
    except RecursionError as error:
        raise InvalidFile("the file is nested too deeply") from error


def _decode(data: bytes) -> str:
    is_wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFile("text must be UTF-8, or UTF-16 with a byte order mark") from error
    if "\0" in text:
        raise InvalidFile("text must not hold null characters; is it a binary file?")
    return text


def _tidy(text: str) -> str:
    """Unify the ends of lines, and drop what no reader sees: blanks there and empty pages of it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[^\S\n\f]+(?=\n)", "", text)
    # Half a surrogate pair, which JSON can spell, is no text and cannot be sent on.
    text = text.encode(errors="replace").decode()
    return re.sub(r"\n{3,}", "\n\n", text)


class _Html(HTMLParser):
    """Collects the text that a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent.append(tag)
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            while self._silent.pop() != tag:
                pass
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.pieces.append(
                "\n\n" if tag in {"p", "h1", "h2", "h3", "table", "section"} else "\n"
            )
        elif tag in {"td", "th"}:
            self.pieces.append(" ")


def _from_html(text: str) -> str:
    parser = _Html()
    parser.feed(text)
    parser.close()
    return re.sub(r" *\n *", "\n", "".join(parser.pieces)).strip()


def _from_json(text: str) -> str:
    return "\n".join(_lines(_parse(text, "the file"), ""))


def _from_json_lines(text: str) -> str:
    lines = text.split("\n")
    objects = (
        "\n".join(_lines(_parse(line, f"line {number}"), ""))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    return "\n\n".join(objects)


def _parse(text: str, what: str) -> object:
    try:
        parsed: object = json.loads(text)
    except ValueError as error:
        raise InvalidFile(f"{what} is not JSON") from error
    return parsed


def _lines(value: object, name: str) -> Iterator[str]:
    """Yield `name: value` for each value of a JSON document; names of nested ones are joined."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, name)
    elif value is not None:
        shown = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}: {shown}" if name else shown


def _read_pdf(path: Path, max_pages: int) -> Iterator[str]:
    import pypdf

    try:
        document: Any = pypdf.PdfReader(path)
        if document.is_encrypted and not document.decrypt(""):
            raise InvalidFile("the PDF is encrypted; upload it without a password")
        num_pages = len(document.pages)
        if num_pages > max_pages:
            raise InvalidFile(f"the PDF has {num_pages} pages; at most {max_pages} are read")
        for page in document.pages:
            yield page.extract_text()
    except (InvalidFile, MemoryError):
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise InvalidFile("the PDF cannot be read; it is damaged or not a PDF") from error
