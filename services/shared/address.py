"""Addresses of gRPC servers, as settings and commands take them.

gRPC itself takes a name without a port and tries port 443, or a URL and looks for a host of that
name; either ends in an error that says nothing of it.
"""

import asyncio
import re
import socket

from services.shared.errors import Unavailable

_HOST_PORT = re.compile(r"(\[[^\s\[\]]+\]|[^\s:/\[\]]+):\d{1,5}")
# Names with a scheme of gRPC's own: https://github.com/grpc/grpc/blob/master/doc/naming.md
_WITH_SCHEME = re.compile(r"(dns|ipv4|ipv6|xds):\S+:\d{1,5}")


def check_address(text: str) -> str:
    """Return an address of gRPC that names its port.

    >>> check_address("encoder:9000")
    'encoder:9000'

    Raises:
        ValueError: it does not; the message goes on after the name of what was given.
    """
    if not (_HOST_PORT.fullmatch(text) or _WITH_SCHEME.fullmatch(text)):
        raise ValueError(f"must be host:port of gRPC, such as 127.0.0.1:9000, got {text!r}")
    return text


async def resolve(address: str) -> list[str]:
    """Return the addresses of all servers behind a name, each as gRPC takes it.

    Those of IPv4, if there are any: a server of both kinds has one of each.

    Args:
        address: as `check_address` takes it, or "unix:" and a path.

    Raises:
        Unavailable: the name is not known.
    """
    scheme, _, rest = address.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return [f"{scheme}:{one}" for one in rest.split(",")]
    if scheme in ("unix", "xds"):
        return [address]
    host, port = host_of(address), address.rpartition(":")[2]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"the name {host!r} has no address: {error.strerror}") from error
    old = sorted({f"ipv4:{at[0]}:{port}" for family, *_, at in found if family == socket.AF_INET})
    new = sorted({f"ipv6:[{at[0]}]:{port}" for family, *_, at in found if family != socket.AF_INET})
    return old or new


def host_of(address: str) -> str:
    """Return the name of a host, without scheme and port; "": the address names none.

    >>> host_of("dns:///encoder.search.svc:9000")
    'encoder.search.svc'
    """
    scheme = address.partition(":")[0]
    if scheme in ("ipv4", "ipv6", "unix", "xds"):
        return ""
    name = address.rpartition("/")[2] if scheme == "dns" else address
    return name.removeprefix("dns:").rpartition(":")[0].strip("[]")
