"""Addresses of gRPC servers, as settings and commands take them.

gRPC itself takes a name without a port and tries port 443, or a URL and looks for a host of that
name; either ends in an error that says nothing of it.
"""

import re

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
