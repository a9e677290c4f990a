"""A file from a web server, bounded in size and time, from a checked address only.

The name is resolved where the connection is made, every address that it has is checked, and the
connection goes to one of those: an answer of the name server that changes in between (DNS
rebinding) has nothing to change. Redirects are followed on the same host only, proxies never used.
"""

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpcore

from services.shared.errors import InvalidRequest, PermissionDenied, TooLarge, TooSlow
from services.trainer.data.allowed import Address, Allowed, IpAddress, read_address

_MAX_REDIRECTS = 5
_MAX_WAIT_S = 30.0  # for a connection, and for each piece

Resolve = Callable[[str, int], list[str]]
"""Name and port to IP addresses; raises OSError."""


def resolve(host: str, port: int) -> list[str]:
    """Ask the system."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Downloads:
    """Fetches files of web servers.

    Args:
        allowed: the operator's list.
        max_bytes: longest file.
        timeout_s: for one file, from the first look-up to the last byte.
        resolve: name and port to addresses.
    """

    def __init__(
        self, allowed: Allowed, max_bytes: int, timeout_s: float, resolve: Resolve = resolve
    ) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve

    def fetch(self, url: str, target: Path, param: str) -> None:
        """Fetch a file.

        Raises:
            PermissionDenied: an address on the way is not allowed.
            TooLarge: the file is longer than `max_bytes`.
            TooSlow: it took longer than `timeout_s`.
            InvalidRequest: the server is out of reach, or has no such file.
        """
        backend = _Backend(self._allowed, self._resolve, time.monotonic() + self._timeout_s, param)
        context = ssl.create_default_context()
        with (
            _explained(param, self._timeout_s),
            httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
        ):
            self._follow(pool, url, target, param)

    def _follow(self, pool: httpcore.ConnectionPool, url: str, target: Path, param: str) -> None:
        origin = read_address(url).origin
        for _ in range(_MAX_REDIRECTS + 1):
            asked = [("Host", _host(url)), ("Accept-Encoding", "identity")]
            with pool.stream("GET", url, headers=asked) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status not in (301, 302, 303, 307, 308):
                    self._save(response, headers, target, param)
                    return
            url = urljoin(url, headers.get(b"location", b"").decode("latin-1"))
            address = _read(url, param)
            if address.origin != origin or not self._allowed.has_address(address):
                raise PermissionDenied(
                    f"{param}: the server redirects to an address that is not on the same host, "
                    "or not one that the trainer may read; give the last address itself",
                    param,
                )
        raise InvalidRequest(f"{param}: more than {_MAX_REDIRECTS} redirects", param)

    def _save(
        self, response: httpcore.Response, headers: dict[bytes, bytes], target: Path, param: str
    ) -> None:
        if response.status != 200:
            raise InvalidRequest(
                f"{param}: the server answers with status {response.status}, not 200", param
            )
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise InvalidRequest(f"{param}: the server sends the file packed, unasked", param)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            raise too_large(param, self._max_bytes)
        num_bytes = 0
        with target.open("wb") as file:
            for piece in response.iter_stream():
                num_bytes += len(piece)
                if num_bytes > self._max_bytes:
                    raise too_large(param, self._max_bytes)
                file.write(piece)


def too_large(param: str, max_bytes: int) -> TooLarge:
    return TooLarge(f"{param}: what is fetched must have at most {max_bytes} bytes", param)


@contextlib.contextmanager
def _explained(param: str, timeout_s: float) -> Iterator[None]:
    """Say what went wrong, without the address: it may hold a signature."""
    try:
        yield
    except httpcore.TimeoutException as error:
        raise TooSlow(
            f"{param}: the server must send the file within {timeout_s:g} s, without a pause of "
            f"{_MAX_WAIT_S:g} s",
            param,
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, UnicodeError) as error:
        raise InvalidRequest(
            f"{param}: the server is out of reach, or broke off ({type(error).__name__})", param
        ) from error


def _read(url: str, param: str) -> Address:
    try:
        return read_address(url)
    except ValueError as error:
        raise InvalidRequest(f"{param}: the server redirects to no plain address", param) from error


def _host(url: str) -> str:
    address = read_address(url)
    host = f"[{address.host}]" if ":" in address.host else address.host
    is_usual = (address.scheme, address.port) in (("http", 80), ("https", 443))
    return host if is_usual else f"{host}:{address.port}"


class _Backend(httpcore.NetworkBackend):
    """Connects to checked addresses only, and lets nothing outlive the deadline."""

    def __init__(self, allowed: Allowed, resolve: Resolve, deadline_s: float, param: str) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._deadline_s = deadline_s
        self._param = param

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = [_ip(text) for text in self._resolve(host, port)]
        if not addresses or not all(self._allowed.has_ip(ip) for ip in addresses):
            raise PermissionDenied(
                f"{self._param}: the host has a private address, from which nothing is read",
                self._param,
            )
        for number, ip in enumerate(addresses, start=1):
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    str(ip), port, _left_s(self._deadline_s), socket_options=()
                )
                return _Stream(stream, self._deadline_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(addresses):
                    raise
        raise AssertionError  # there is an address


class _Stream(httpcore.NetworkStream):
    """A connection that ends at a deadline, however little it sends at a time."""

    def __init__(self, inner: httpcore.NetworkStream, deadline_s: float) -> None:
        self._inner = inner
        self._deadline_s = deadline_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left_s(self._deadline_s))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left_s(self._deadline_s))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left_s(self._deadline_s)
        return _Stream(
            self._inner.start_tls(ssl_context, server_hostname, left_s), self._deadline_s
        )

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 (httpcore's own)
        return self._inner.get_extra_info(info)


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise httpcore.ReadTimeout
    return min(left_s, _MAX_WAIT_S)


def _ip(text: str) -> IpAddress:
    return ipaddress.ip_address(text.partition("%")[0])
