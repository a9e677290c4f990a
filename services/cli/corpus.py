"""Real text for the demo: documentation that lies on every machine that runs it.

In: nothing (the docstrings of the standard library and of the installed packages), or a folder
or file of text, Markdown or JSON lines. Out: documents, each with a title and a body, so that
title -> body are training pairs. Knows nothing of models.
"""

import ast
import inspect
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MIN_BODY_CHARS = 40
_MIN_TITLE_WORDS = 3
_TEXT_SUFFIXES = {".txt", ".md", ".rst"}
_JSONL_SUFFIXES = {".jsonl", ".ndjson"}
# First the library that every reader knows; then packages whose documentation is long.
_PACKAGES_FIRST = ("numpy", "scipy", "sklearn", "matplotlib", "networkx", "sympy", "torch")
# Underlines of headings, and code that shows what the prose says.
_NOT_PROSE = re.compile(r"\s*(>>>|\.\.\.|[-=~^*_]{3,}\s*$)")
_NOT_DOCUMENTATION = {"test", "tests", "testing", "idlelib", "lib2to3", "_vendor", "__pycache__"}


class CorpusError(Exception):
    """A user's corpus cannot be read; the message says where and what is accepted."""


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of text.

    Args:
        id: where it is from, for example "json.dumps".
        title: its first sentence; asks for the body in training.
        body: the rest, at most `max_chars` of it.
    """

    id: str
    title: str
    body: str

    @property
    def text(self) -> str:
        """What is indexed and shown."""
        return f"{self.title}\n{self.body}"


def read_corpus(source: Path | None, limit: int, max_chars: int = 200) -> list[Document]:
    """Read up to `limit` documents; the same call on the same machine reads the same ones.

    Args:
        source: a folder, a file, or None for the docstrings of this Python.
        limit: how many documents at most.
        max_chars: how much of a body is kept.

    Raises:
        CorpusError: `source` holds no document, or a line is not what it must be.
    """
    found: dict[str, Document] = {}
    bodies: set[str] = set()
    for document in _docstrings(max_chars) if source is None else _files(source, max_chars):
        if document.id not in found and document.body not in bodies:
            found[document.id] = document
            bodies.add(document.body)
        if len(found) == limit:
            break
    if not found:
        raise CorpusError(
            f"{source} holds no documents; accepted are .txt, .md and .rst files with paragraphs, "
            'and .jsonl files of {"title", "text"} or {"anchor", "positive"}'
        )
    return list(found.values())


def _docstrings(max_chars: int) -> Iterator[Document]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = Path(sysconfig.get_path("purelib"))
    yield from _module_docstrings(stdlib, stdlib, max_chars)
    later = sorted(path.name for path in packages.iterdir() if (path / "__init__.py").exists())
    for name in [*_PACKAGES_FIRST, *(n for n in later if n not in _PACKAGES_FIRST)]:
        yield from _module_docstrings(packages / name, packages, max_chars)


def _module_docstrings(folder: Path, root: Path, max_chars: int) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "site-packages" in parts or _NOT_DOCUMENTATION.intersection(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        yield from _nodes(tree, module, max_chars)


def _nodes(node: ast.AST, name: str, max_chars: int) -> Iterator[Document]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, kinds) and (text := ast.get_docstring(node)):
        yield from _split(name, inspect.cleandoc(text), max_chars)
    for child in getattr(node, "body", []):
        if isinstance(child, kinds) and not child.name.startswith("_"):  # type: ignore[union-attr]  # a module is nobody's child
            yield from _nodes(child, f"{name}.{child.name}", max_chars)  # type: ignore[union-attr]


def _split(name: str, text: str, max_chars: int) -> Iterator[Document]:
    """Take the first paragraph as title and the rest as body, if both say something."""
    title, _, body = text.partition("\n\n")
    prose = "\n".join(line for line in body.splitlines() if not _NOT_PROSE.match(line))
    title, body = _one_line(title), _shorten(_one_line(prose), max_chars)
    if len(title.split()) >= _MIN_TITLE_WORDS and len(body) >= _MIN_BODY_CHARS:
        yield Document(name, _shorten(title, max_chars), body)


def _files(source: Path, max_chars: int) -> Iterator[Document]:
    root = source if source.is_dir() else source.parent
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    for path in paths:
        name = str(path.relative_to(root))
        if path.suffix in _JSONL_SUFFIXES:
            yield from _json_lines(path, name, max_chars)
        elif path.suffix in _TEXT_SUFFIXES:
            paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
            for number, paragraph in enumerate(paragraphs):
                first, _, rest = _one_line(paragraph).partition(". ")
                yield from _split(f"{name}:{number}", f"{first}\n\n{rest}", max_chars)


def _json_lines(path: Path, name: str, max_chars: int) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                title = row.get("title") or row.get("anchor") or ""
                body = row.get("text") or row["positive"]
            except (ValueError, KeyError, AttributeError) as error:
                raise CorpusError(
                    f'{name}, line {number}: must be {{"title", "text"}} or '
                    '{"anchor", "positive"}'
                ) from error
            if not title:
                title, _, body = str(body).partition(". ")
            yield from _split(f"{name}:{number}", f"{title}\n\n{body}", max_chars)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shorten(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return text[:max_chars].rsplit(" ", 1)[0] + " ..."
