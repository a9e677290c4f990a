"""The keys that callers may send, and whose each is: `authorization: Bearer <key>`.

One key of the operator's own comes from the settings, for everything and without limits; any number
come from a file (`keys_file.py`), which is read again when it changes, so that keys are given and
taken without a restart.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from services.shared.auth import Principal
from services.shared.errors import Unauthenticated
from services.shared.keys_file import KeysError, read_keys
from services.shared.limits import NO_LIMITS, Limits
from services.shared.watch import Watched

_OPERATOR = Principal("operator")


class Keys:
    """The keys of a process.

    Args:
        api_key: the operator's; None: there is none.
        path: the file; None: there is none. With neither, everybody is an operator.
        limits: of each key of the file that names none of its own.

    Raises:
        KeysError: the file cannot be used.
    """

    def __init__(
        self,
        api_key: SecretStr | None = None,
        path: Path | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._own = None if api_key is None else _digest(api_key.get_secret_value())
        self._path = path
        self._limits = limits
        # Keys are found by a digest that nobody outside can compute, so that how long it takes
        # tells nothing of how much of a key, or of its SHA-256, was right.
        self._secret = os.urandom(32)
        self._principals: dict[bytes, Principal] = {}
        self._file = Watched("keys", [] if path is None else [path], self._read, KeysError)

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
        await self._file.watch()

    def refresh(self) -> None:
        """Read the file again if it has changed; one that cannot be used leaves the old keys."""
        self._file.refresh()

    def _read(self) -> None:
        own = {} if self._own is None else {self._own: _OPERATOR}
        read = {} if self._path is None else read_keys(self._path, set(own), self._limits)
        found = {self._place(digest): principal for digest, principal in (read | own).items()}
        self._principals = {place: self._as_used(place, each) for place, each in found.items()}

    def _as_used(self, place: bytes, principal: Principal) -> Principal:
        """Keep what a key has used up; its limits may be new."""
        before = self._principals.get(place)
        if before is None:
            return principal
        before.allowance.change(principal.allowance.limits)
        return replace(principal, allowance=before.allowance)

    def _place(self, digest: str) -> bytes:
        return hashlib.blake2b(digest.encode(), key=self._secret, digest_size=32).digest()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
