"""The keys that callers may send, and whose each is: `authorization: Bearer <key>`.

One key of the operator's own comes from the settings; any number come from a file that holds only
their digests and is read again when it changes, so that keys are given and taken without a restart:

    {"name": "ops", "sha256": "9f86d0..."}
    {"name": "acme-2026", "sha256": "60303a...", "tenant": "acme"}
"""

import asyncio
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.shared.auth import Principal, is_tenant
from services.shared.errors import Unauthenticated

log = logging.getLogger(__name__)

_OPERATOR = Principal("operator")
_FIELDS = ("name", "sha256", "tenant")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()
_MAX_NAME_CHARS = 64
_LOOK_S = 1.0
"""Between two looks whether the file has changed."""


class KeysError(Exception):
    """The file cannot be used; the message lists every mistake in it."""


class Keys:
    """The keys of a process.

    Args:
        api_key: the operator's; None: there is none.
        path: the file; None: there is none. With neither, everybody is an operator.

    Raises:
        KeysError: the file cannot be used.
    """

    def __init__(self, api_key: SecretStr | None = None, path: Path | None = None) -> None:
        self._own = None if api_key is None else _digest(api_key.get_secret_value())
        self._path = path
        # Keys are found by a digest that nobody outside can compute, so that how long it takes
        # tells nothing of how much of a key, or of its SHA-256, was right.
        self._secret = os.urandom(32)
        self._seen = _signature(path)
        self._principals = self._read()

    def principal(self, header: str | None) -> Principal:
        """Return whose key a request's `authorization` header carries.

        Raises:
            Unauthenticated: keys are asked for, and it carries none of them.
        """
        if self._own is None and self._path is None:
            return _OPERATOR
        scheme, _, given = (header or "").partition(" ")
        found = self._principals.get(self._place(_digest(given)))
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated("send a valid API key as 'authorization: Bearer <key>'")
        return found

    async def watch(self) -> None:
        """Read the file again whenever it has changed, for ever; a bad one changes nothing."""
        while self._path is not None:
            await asyncio.sleep(_LOOK_S)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # our bug; a key that is taken away later must not stay for it
                log.exception("the keys could not be read again")

    def refresh(self) -> None:
        """Read the file again if it has changed; one that cannot be used leaves the old keys."""
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._principals = self._read()
        except KeysError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%s keys were read from %s", len(self._principals), self._path)

    def _read(self) -> dict[bytes, Principal]:
        own = {} if self._own is None else {self._own: _OPERATOR}
        read = {} if self._path is None else _read_file(self._path, set(own))
        return {self._place(digest): principal for digest, principal in (read | own).items()}

    def _place(self, digest: str) -> bytes:
        return hashlib.blake2b(digest.encode(), key=self._secret, digest_size=32).digest()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _signature(path: Path | None) -> object:
    """Return what differs whenever a file's content does; None: it cannot be seen."""
    try:
        seen = path.stat() if path is not None else None
    except OSError:
        return None
    return seen and (seen.st_mtime_ns, seen.st_size, seen.st_ino)


def _read_file(path: Path, own: set[str]) -> dict[str, Principal]:
    """Return {SHA-256: whose it is}; all mistakes are reported at once, and no digest is shown."""
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
        mistakes.append("one of them is the operator's own key of the settings; make another one")
    if not entries:
        mistakes.append("it holds no key")
    if mistakes:
        raise KeysError("\n  ".join([f"the keys file {path} is wrong:", *mistakes]))
    return {entry["sha256"]: Principal(entry["name"], entry.get("tenant")) for entry in named}


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
