"""The ports of a server: HTTP and gRPC, both over TLS or neither, and probes for whoever asks."""

import socket
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.shared.settings import ServerSettings
from services.shared.tls import ServerTls


class CannotListen(Exception):
    """A port is taken or an address is not this machine's; the message says which."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    http: str
    grpc: str
    own_grpc: str
    """The same gRPC for calls of the process to itself."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a server listens on, beside its gRPC."""

    address: Address
    http: socket.socket
    probes: socket.socket | None


def listen(
    server: grpc.aio.Server,
    settings: ServerSettings,
    tls: ServerTls | None,
    own_socket: Path | None = None,
) -> Ports:
    """Take all ports of a server.

    Args:
        server: gets the ports of gRPC.
        settings: say where.
        tls: of both wires; None: nothing is encrypted.
        own_socket: a short path, in a folder of this user alone, for the process's own calls
            where there is TLS: these need not know what host names the certificate is for.

    Raises:
        CannotListen: one of them cannot be had.
    """
    host = settings.host
    http = _listen_http(host, settings.http_port)
    probes = None if settings.probe_port is None else _listen_http(host, settings.probe_port)
    where = f"{host}:{settings.grpc_port}"
    try:
        if tls is None:
            port = server.add_insecure_port(where)
        else:
            port = server.add_secure_port(where, tls.grpc_credentials())
        own = f"{host}:{port}"
        if tls is not None and own_socket is not None:
            where = own = f"unix:{own_socket}"
            server.add_insecure_port(own)
    except RuntimeError as error:
        for listener in (http, probes):
            if listener is not None:
                listener.close()
        raise CannotListen(
            f"gRPC cannot listen at {where}; is the port taken? Give another port or address"
        ) from error
    scheme = "http" if tls is None else "https"
    http_port = http.getsockname()[1]
    return Ports(Address(f"{scheme}://{host}:{http_port}", f"{host}:{port}", own), http, probes)


def _listen_http(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise CannotListen(
            f"HTTP cannot listen at {host}:{port}: {error.strerror}; give another port or address"
        ) from error
