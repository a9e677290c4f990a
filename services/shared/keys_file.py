"""The file of keys: a line of JSON, or an entry of one list, for each; digests, never a key itself.

    {"name": "ops", "sha256": "9f86d0..."}
    {"name": "acme-2026", "sha256": "60303a...", "tenant": "acme"}
    {"name": "shop", "sha256": "a1b2c3...", "scopes": ["search"], "requests_per_minute": 600}

In: its path. Out: whose each key is, what it is for and how often it may be used.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from services.shared.auth import ANY_SCOPE, Principal, Scope, is_tenant
from services.shared.limits import Allowance, Limits

_LIMITS = ("requests_per_minute", "concurrent_calls")
_FIELDS = ("name", "sha256", "tenant", "scopes", *_LIMITS)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()
_MAX_NAME_CHARS = 64
_MAX_LIMIT = 10**9


class KeysError(Exception):
    """The file cannot be used; the message lists every mistake in it."""


def read_keys(path: Path, own: set[str], limits: Limits) -> dict[str, Principal]:
    """Return {SHA-256: whose it is}.

    Args:
        path: the file.
        own: SHA-256s that may not be in it, of the settings and of other files.
        limits: of a key that names none of its own.

    Raises:
        KeysError: it cannot be used; all mistakes are reported at once, and no digest is shown.
    """
    try:
        entries = list(_entries(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"the keys file {path} cannot be read: {error}") from error
    mistakes = [f"{place}: {problem}" for place, entry in entries for problem in _problems(entry)]
    named = [entry for _, entry in entries if isinstance(entry, dict)]
    digests = [entry.get("sha256") for entry in named]
    for field, given in (("name", [entry.get("name") for entry in named]), ("sha256", digests)):
        times = Counter(value for value in given if isinstance(value, str))
        twice = [place for place, value in enumerate(given, 1) if times[str(value)] > 1]
        if twice:
            mistakes.append(f"each {field} must stand there once; keys {twice} share one")
    if own & {digest for digest in digests if isinstance(digest, str)}:
        mistakes.append(
            "one of them is the operator's own key of the settings, or stands in the other file; "
            "make another one"
        )
    if not entries:
        mistakes.append("it holds no key")
    if mistakes:
        raise KeysError("\n  ".join([f"the keys file {path} is wrong:", *mistakes]))
    return {entry["sha256"]: _principal(entry, limits) for entry in named}


def _principal(entry: dict[str, Any], limits: Limits) -> Principal:
    scopes = [Scope[name.upper()] for name in entry.get("scopes", ())]
    own = Limits(**{field: entry.get(field, getattr(limits, field)) for field in _LIMITS})
    return Principal(
        entry["name"],
        entry.get("tenant"),
        reduce(or_, scopes) if scopes else ANY_SCOPE,
        Allowance(own),
    )


def _entries(text: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, entry) of a JSON list or of JSON lines; an exception stands for no JSON."""
    if text.lstrip().startswith("["):
        try:
            listed: list[Any] = json.loads(text)
        except (ValueError, RecursionError):
            listed = [ValueError()]
        yield from ((f"key {place}", entry) for place, entry in enumerate(listed, 1))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", error


def _problems(entry: Any) -> Iterator[str]:  # noqa: ANN401 (whatever JSON holds)
    if not isinstance(entry, dict):
        example = '{"name": "acme-1", "sha256": "<64 hex digits>", "tenant": "acme"}'
        yield f"must be JSON such as {example}"
        return
    if unknown := sorted(set(entry) - set(_FIELDS)):
        yield f"there is no field {unknown[0][:32]!r}; there are {', '.join(_FIELDS)}"
    name, digest = entry.get("name"), entry.get("sha256")
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME_CHARS or not name.isprintable():
        yield f"name must be 1 to {_MAX_NAME_CHARS} printable characters"
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        yield "sha256 must be the key's SHA-256 as 64 digits 0-9 and a-f"
    elif digest == _EMPTY:
        yield "sha256 is that of an empty key; a key must have characters"
    if "tenant" in entry and not (isinstance(entry["tenant"], str) and is_tenant(entry["tenant"])):
        yield (
            "tenant must be 1 to 64 letters, digits, '_', '-' or '.'; leave it out for an "
            "operator's key"
        )
    known = ANY_SCOPE.names
    scopes = entry.get("scopes", known)
    if not isinstance(scopes, list) or not scopes or not all(scope in known for scope in scopes):
        yield (f"scopes must be a list of some of {', '.join(known)}; leave it out for all of them")
    for field in _LIMITS:
        limit = entry.get(field)
        is_whole = isinstance(limit, int) and not isinstance(limit, bool)
        if limit is not None and not (is_whole and 1 <= limit <= _MAX_LIMIT):
            yield f"{field} must be a whole number from 1 to {_MAX_LIMIT}, or null for no limit"
