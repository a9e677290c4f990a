"""Channels to other services' gRPC, over TLS where it is asked for.

A channel keeps the certificates that it was made with, so a `Peer` makes another one when the files
change: calls that begin then go through it, and those that are going on end in the old one.
"""

import asyncio
import ipaddress
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import grpc

from services.shared.tls import CertificatesError, TlsFiles
from services.shared.watch import Watched

S = TypeVar("S")

Options = Sequence[tuple[str, Any]]

# What may be called twice: all of an encoder's, and what only reads of a router's.
_REPEATABLE = [
    {"service": "matryoshka.v1.EncoderService"},
    *(
        {"service": "matryoshka.v1.RouterService", "method": method}
        for method in (
            "Search",
            "GetCollection",
            "ListCollections",
            "GetRecall",
            "GetCalibration",
        )
    ),
]

_SERVICE_CONFIG: dict[str, object] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": _REPEATABLE,
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_ASKS_HEALTH = {"healthCheckConfig": {"serviceName": ""}}

# For calls that are going on when certificates change; streams of a training job take hours.
_LONGEST_CALL_S = 86_400.0


def balanced(address: str) -> Options:
    """Return the options by which calls go to whoever can answer them.

    Where a name stands for several addresses, as a headless Service's does, calls take turns
    between those that say that they are ready: one that drains is left before it refuses anything.
    One that is the only one is called until it is gone. A call that was not answered, as the
    server is gone, is made again. Names are looked up again soon after a connection has ended, and
    an address that was gone is tried again as soon.
    """
    config = _SERVICE_CONFIG | (_ASKS_HEALTH if may_be_several(address) else {})
    return (
        ("grpc.service_config", json.dumps(config)),
        ("grpc.dns_min_time_between_resolutions_ms", 2000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    )


def may_be_several(address: str) -> bool:
    """Say whether there may be more than one server behind an address."""
    if address.startswith("unix:"):
        return False
    if "," in address:
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return False
    try:
        ipaddress.ip_address(host.removeprefix("ipv4:").removeprefix("ipv6:").strip("[]"))
    except ValueError:
        return True
    return False


def connect(
    address: str, options: Options = (), credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Open a channel; to be closed by the caller.

    Args:
        address: host:port, or "unix:" and a path, which is never encrypted.
        options: of gRPC, beside those that balance calls.
        credentials: of TLS; None: nothing is encrypted.
    """
    options = (*balanced(address), *options)
    if credentials is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


class Peer(Generic[S]):
    """Another service, for as long as this one runs; close it when done.

    Args:
        address: as `connect`'s.
        make_stub: makes what calls go through, of a channel.
        options: of gRPC.
        tls: what is shown, and of which CA the other must be; None: nothing is encrypted.

    Raises:
        CertificatesError: the files cannot be used.
    """

    def __init__(
        self,
        address: str,
        make_stub: Callable[[grpc.aio.Channel], S],
        options: Options = (),
        tls: TlsFiles | None = None,
    ) -> None:
        self._address, self._options, self._tls = address, options, tls
        self._make_stub = make_stub
        self._newest: grpc.ChannelCredentials | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if tls is not None:
            watched = Watched("certificates", tls.paths, self._read, CertificatesError)
            self._do(watched.watch())
        self._open()

    @property
    def stub(self) -> S:
        """What the next call goes through; ask for it anew for each."""
        if self._newest is not self._used:
            self._do(_retire(self._channel))
            self._open()
        return self._stub

    async def close(self) -> None:
        """End all calls."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(grace=None)

    def _open(self) -> None:
        self._used = self._newest
        self._channel = connect(self._address, self._options, self._used)
        self._stub = self._make_stub(self._channel)

    def _read(self) -> None:
        assert self._tls is not None
        self._newest = self._tls.channel_credentials()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _retire(channel: grpc.aio.Channel) -> None:
    """Close a channel when its last call has ended, or now if this is cancelled."""
    try:
        await channel.close(_LONGEST_CALL_S)
    finally:
        await channel.close(None)
