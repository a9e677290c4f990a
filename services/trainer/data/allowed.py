"""What a trainer may read beside uploaded files: the operator's list, and nothing else.

An entry is a folder, an address of a web server or a bucket, each with all that is below it. The
addresses behind names are looked at too: private ones are refused unless their network is listed,
so that nobody reads an internal service through the trainer (server-side request forgery, OWASP).
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"http": 80, "https": 443, "s3": 0}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Address:
    """Of a file on another machine: what the list is about."""

    scheme: str
    host: str
    """Or the bucket."""
    port: int
    path: str
    """Begins with a slash; not decoded."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


@dataclass(frozen=True, slots=True)
class Allowed:
    """The operator's list."""

    folders: tuple[Path, ...]
    addresses: tuple[Address, ...]
    networks: tuple[Network, ...]
    """Private networks that names may lead to."""

    def has_folder_of(self, path: Path) -> bool:
        """Say whether a resolved path lies in a listed folder."""
        return any(path.is_relative_to(folder.resolve()) for folder in self.folders)

    def has_address(self, address: Address) -> bool:
        """Say whether an address lies below a listed one."""
        return any(
            address.origin == prefix.origin
            and PurePosixPath(address.path).is_relative_to(prefix.path)
            for prefix in self.addresses
        )

    def has_ip(self, ip: IpAddress) -> bool:
        """Say whether a connection to an IP address may be made."""
        return all(
            (inner.is_global and not inner.is_multicast)
            or any(inner.version == net.version and inner in net for net in self.networks)
            for inner in _inner(ip)
        )


def read_list(sources: str | None, networks: str | None) -> Allowed:
    """Read the two settings.

    Args:
        sources: folders and addresses, with commas between them.
        networks: networks as 10.1.0.0/16, with commas between them.

    Raises:
        ValueError: says what would be accepted; goes on after the name of what was given.
    """
    folders, addresses = [], []
    for entry in _entries(sources):
        if entry.startswith("/"):
            folders.append(Path(entry))
            continue
        try:
            address = read_address(entry)
        except ValueError as error:
            raise ValueError(
                "must be absolute folders and addresses such as https://host/path or "
                f"s3://bucket/path, with commas between them, got {entry!r}"
            ) from error
        addresses.append(address)
    try:
        found = tuple(ipaddress.ip_network(entry) for entry in _entries(networks))
    except ValueError as error:
        raise ValueError(
            f"must be networks such as 10.1.0.0/16, with commas between them: {error}"
        ) from error
    return Allowed(tuple(folders), tuple(addresses), found)


def read_address(url: str) -> Address:
    """Take an address apart; a query is left out of it.

    Raises:
        ValueError: it is none, or one with a password, a fragment or steps up in its path.
    """
    parts: SplitResult = urlsplit(url)
    path = parts.path or "/"
    names = unquote(path).split("/")
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("no http, https or s3 address, or one with a password or fragment")
    if ".." in names or "." in names or not url.isascii() or not url.isprintable() or "\\" in url:
        raise ValueError("its path is not plain")
    # Of a bucket the capitals count.
    host = parts.netloc if parts.scheme == "s3" else parts.hostname.removesuffix(".")
    port = parts.port  # ValueError for one that is none
    return Address(parts.scheme, host, port or _PORTS[parts.scheme], path)


def _inner(ip: IpAddress) -> Iterator[IpAddress]:
    """Yield an address and those IPv4 ones that it is only a way to write or to reach."""
    yield ip
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            yield ip.ipv4_mapped
        if ip.sixtofour:
            yield ip.sixtofour
        if ip.teredo:
            yield from ip.teredo
        if ip in _NAT64:
            yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)


def _entries(text: str | None) -> list[str]:
    return [entry.strip() for entry in (text or "").split(",") if entry.strip()]
