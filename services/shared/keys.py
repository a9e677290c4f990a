"""The keys that callers may send, and whose each is: `authorization: Bearer <key>`.

One key of the operator's own comes from the settings, for everything and without limits; any number
come from files (`keys_file.py`), which are read again when they change, so that keys are given and
taken without a restart. There are two, as one is the operator's and one the suite's own.
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
        path: a file; None: there is none.
        limits: of each key of a file that names none of its own.
        peers: another file, of the suite's own services; None: there is none. Without any key,
            everybody is an operator.

    Raises:
        KeysError: a file cannot be used.
    """

    def __init__(
        self,
        api_key: SecretStr | None = None,
        path: Path | None = None,
        limits: Limits = NO_LIMITS,
        peers: Path | None = None,
    ) -> None:
        self._own = None if api_key is None else _digest(api_key.get_secret_value())
        self._paths = [one for one in (path, peers) if one is not None]
        self._limits = limits
        # Keys are found by a digest that nobody outside can compute, so that how long it takes
        # tells nothing of how much of a key, or of its SHA-256, was right.
        self._secret = os.urandom(32)
        self._principals: dict[bytes, Principal] = {}
        self._files = Watched("keys", self._paths, self._read, KeysError)

    def principal(self, header: str | None) -> Principal:
        """Return whose key a request's `authorization` header carries.

        Raises:
            Unauthenticated: keys are asked for, and it carries none of them.
        """
        if self._own is None and not self._paths:
            return _OPERATOR
        scheme, _, given = (header or "").partition(" ")
        found = self._principals.get(self._place(_digest(given)))
        if scheme.lower() != "bearer" or found is None:
            raise Unauthenticated("send a valid API key as 'authorization: Bearer <key>'")
        return found

    async def watch(self) -> None:
        """Read the files again whenever one has changed, for ever; a bad one changes nothing."""
        await self._files.watch()

    def refresh(self) -> None:
        """Read the files again if one has changed; one that cannot be used leaves the old keys."""
        self._files.refresh()

    def _read(self) -> None:
        read = {} if self._own is None else {self._own: _OPERATOR}
        for path in self._paths:
            read |= read_keys(path, set(read), self._limits)
        found = {self._place(digest): principal for digest, principal in read.items()}
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
