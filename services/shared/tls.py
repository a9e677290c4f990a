"""TLS: what a process shows and whom it trusts, from PEM files that may change while it runs.

In: paths. Out: credentials for servers that take the newest certificates for each new connection;
connections that are open go on. Knows nothing of calls.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.shared.watch import Watched


class CertificatesError(Exception):
    """Certificates cannot be used; the message says of which file, and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of one side of a connection."""

    cert: Path | None
    """The certificate that is shown, with those between it and its CA behind it."""
    key: Path | None
    """Its private key, not encrypted."""
    ca: Path | None
    """Certificates of which the other side's must come; None: a server asks for none."""

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.cert, self.key, self.ca) if path is not None]

    def load(self, protocol: int) -> "Loaded":
        """Read and check them.

        Args:
            protocol: of the side, such as ssl.PROTOCOL_TLS_SERVER.

        Raises:
            CertificatesError: they cannot be used.
        """
        files = (self.cert, self.key, self.ca)
        before = [None if path is None else _read(path) for path in files]
        context = self._context(protocol)
        if before != [None if path is None else _read(path) for path in files]:
            raise CertificatesError("the files changed while they were read")
        return Loaded(context, *before)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel is made with; CertificatesError: the files cannot be used."""
        loaded = self.load(ssl.PROTOCOL_TLS_CLIENT)
        return grpc.ssl_channel_credentials(loaded.ca, loaded.key, loaded.cert)

    def client_context(self) -> ssl.SSLContext:
        """Return how HTTPS is called; CertificatesError: the files cannot be used."""
        return self.load(ssl.PROTOCOL_TLS_CLIENT).context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            try:
                # Without a password OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except ssl.SSLError as error:
                # OpenSSL gives no reason for a file that it cannot read, encrypted ones among them.
                reason = (
                    error.reason or "one of them cannot be read, or they do not belong together"
                )
                raise CertificatesError(
                    f"{self.cert} and {self.key} must be a certificate and its key in PEM, not "
                    f"encrypted: {reason}"
                ) from error
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except ssl.SSLError as error:
                raise CertificatesError(
                    f"{self.ca} must hold certificates in PEM: "
                    f"{error.reason or 'it cannot be read as such'}"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was in the files at one moment."""

    context: ssl.SSLContext
    """Python's form of them."""
    cert: bytes | None
    key: bytes | None
    ca: bytes | None


class ServerTls:
    """What a process serves with, over both wires.

    Args:
        cert: the chain, in PEM.
        key: its private key.
        grpc_client_ca: callers of gRPC must show a certificate from it; None: they need none.
        http_client_ca: the same for HTTP.

    Raises:
        CertificatesError: they cannot be used.
    """

    def __init__(
        self, cert: Path, key: Path, grpc_client_ca: Path | None, http_client_ca: Path | None
    ) -> None:
        self._grpc = TlsFiles(cert, key, grpc_client_ca)
        self._http = TlsFiles(cert, key, http_client_ca)
        paths = list(dict.fromkeys([*self._grpc.paths, *self._http.paths]))
        self.http_context = _NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self._watched = Watched("certificates", paths, self._read, CertificatesError)

    async def watch(self) -> None:
        """Read the files again whenever they have changed, for ever."""
        await self._watched.watch()

    def refresh(self) -> None:
        """Read the files again if they have changed."""
        self._watched.refresh()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that take the newest certificates for each new connection."""
        # Asked in a thread of gRPC's, before each handshake.
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._configuration,
            lambda: self._configuration,
            require_client_authentication=self._grpc.ca is not None,
        )
        return credentials

    def _read(self) -> None:
        loaded = self._grpc.load(ssl.PROTOCOL_TLS_SERVER)
        assert loaded.key is not None
        assert loaded.cert is not None
        newest = self._http.load(ssl.PROTOCOL_TLS_SERVER).context
        self._configuration = grpc.ssl_server_certificate_configuration(
            [(loaded.key, loaded.cert)], loaded.ca
        )
        self.http_context.newest = newest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificatesError(f"{path} cannot be read: {error.strerror}") from error


class _NewestContext(ssl.SSLContext):
    """Makes each connection from the newest context.

    One context could take another certificate, but never forget a CA, nor the sessions of callers
    that it trusted once.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 (as ssl's)
        return self.newest.wrap_bio(*args, **kwargs)
