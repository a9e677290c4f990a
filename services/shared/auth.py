"""The API key check, the same on both wires: `authorization: Bearer <key>`."""

import hmac

from pydantic import SecretStr

from services.shared.errors import Unauthenticated


def check_key(header: str | None, key: SecretStr | None) -> None:
    """Compare a request's `authorization` header with the key, in constant time.

    Raises:
        Unauthenticated: a key is set and the header does not carry it.
    """
    if key is None:
        return
    scheme, _, given = (header or "").partition(" ")
    expected = key.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), expected):
        raise Unauthenticated("send a valid API key as 'authorization: Bearer <key>'")
