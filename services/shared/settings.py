"""Settings of the services: typed, from the environment, all mistakes reported at once.

A service's settings live beside it and extend `ServerSettings`; variables are named
`MATRYOSHKA_<SERVICE>_<FIELD>`. Only entry points read them; everything else receives values.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableSource

from services.shared.tls import TlsFiles
from services.shared.trace_export import check_trace_to
from services.shared.variables import Stranger, of_no_service, of_service


class SettingsError(Exception):
    """One or more variables are wrong; the message lists every one.

    Args:
        mistakes: a sentence on each.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n  ".join(["these settings are wrong:", *mistakes]))
        self.mistakes = tuple(mistakes)


class ServerSettings(BaseSettings):
    """What every service needs to listen, to bound its callers and to stop in order."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the HTTP routes; 0 takes a free one."""
    grpc_port: int = Field(default=9000, ge=0, le=65535)
    """Port of gRPC; 0 takes a free one."""
    probe_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of /livez and /readyz alone, never encrypted; unset: they are on the HTTP port only."""
    tls_cert: Path | None = None
    """Certificate chain (PEM): both wires are served over TLS, and it is shown to the services that
    are called. It and the three below are read again when they change; unset: no TLS."""
    tls_key: Path | None = Field(default=None, validate_default=True)
    """Its private key (PEM)."""
    tls_grpc_client_ca: Path | None = Field(default=None, validate_default=True)
    """Callers of gRPC must show a certificate of this CA (PEM); unset: they need none."""
    tls_http_client_ca: Path | None = Field(default=None, validate_default=True)
    """The same for HTTP."""
    data_dir: Path = Path("matryoshka-data")
    """Folder for everything that must survive a restart."""
    secrets_dir: Path | None = None
    """Folder of files that are named after variables, in small letters, and hold their values: for
    what shall not lie in the environment. A variable that is set, too, wins."""
    api_key: SecretStr | None = None
    """Callers must send this as a bearer token, or a key of `keys_file`; it is the operator's. Both
    unset: no key is asked for."""
    keys_file: Path | None = None
    """Further keys, an operator's or a tenant's each (`keys.py`), read again when it changes."""
    peer_keys_file: Path | None = None
    """The same for the keys of the suite's own services, which a deployment makes for itself."""
    key_requests_per_minute: int | None = Field(default=None, ge=1)
    """Calls a minute with one key of `keys_file` that says nothing of it; unset: any number."""
    key_concurrent_calls: int | None = Field(default=None, ge=1)
    """Calls at once with such a key; unset: any number."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Longest HTTP body; a longer one is refused before it is read."""
    max_message_bytes: int = Field(default=64 * 2**20, ge=1024)
    """Longest gRPC message; 2048 vectors of 4096 float32 numbers are 32 MiB."""
    max_bodies_bytes: int = Field(default=256 * 2**20, ge=1024)
    """HTTP bodies held at once, together; one that would pass this is refused."""
    max_body_s: float = Field(default=30.0, gt=0)
    """Time for an HTTP body to arrive."""
    max_connections: int = Field(default=4096, ge=1)
    """HTTP connections at once."""
    max_calls: int = Field(default=1024, ge=1)
    """gRPC calls at once, streams included."""
    drain_s: float = Field(default=1.0, ge=0)
    """After the first SIGTERM: time to be seen as not ready before new calls are refused."""
    grace_s: float = Field(default=20.0, ge=0)
    """Then: time for calls in flight to end."""
    log_format: str = Field(default="text", pattern="^(text|json)$")
    """Log lines for people (text) or machines (json)."""
    trace_to: str | None = None
    """Where OpenTelemetry's spans go; None: nothing is traced."""
    trace_share: float = Field(default=1.0, ge=0, le=1)
    """Share of the calls that begin a trace; one that a caller sends is always gone on with."""

    @field_validator("trace_to")
    @classmethod
    def _check_trace_to(cls, value: str | None) -> str | None:
        return None if value is None else check_trace_to(value)

    @field_validator("secrets_dir")
    @classmethod
    def _is_there(cls, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        if not folder.is_absolute() or not folder.is_dir():
            raise ValueError(f"must be an absolute folder that is there, got {str(folder)!r}")
        if not any(path.name.lower().startswith("matryoshka_") for path in folder.iterdir()):
            raise ValueError(
                "must hold files that are named after variables, such as "
                f"matryoshka_router_api_key, got {str(folder)!r}"
            )
        return folder

    @field_validator("tls_key")
    @classmethod
    def _goes_with_the_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_cert") is None):
            raise ValueError("and TLS_CERT go together: set both, or neither")
        return key

    @field_validator("tls_grpc_client_ca", "tls_http_client_ca")
    @classmethod
    def _needs_a_certificate(cls, ca: Path | None, info: ValidationInfo) -> Path | None:
        if ca is not None and info.data.get("tls_cert") is None:
            raise ValueError("needs TLS_CERT and TLS_KEY beside it")
        return ca

    @classmethod
    def read(cls, **overrides: object) -> Self:
        """Read the environment and the folder of secrets; `overrides`, of a command line, win.

        Raises:
            SettingsError: lists every wrong variable with its value and what is wrong with it.
        """
        prefix = cls.model_config["env_prefix"]
        given: dict[str, Any] = {k: v for k, v in overrides.items() if v is not None}
        if "secrets_dir" in overrides:  # of a process of several services: this one's means nothing
            given["secrets_dir"] = overrides["secrets_dir"]
        named = given.get("secrets_dir", os.environ.get(f"{prefix}SECRETS_DIR"))
        names: dict[str, str] = dict(os.environ)
        try:
            folder = Path(named) if named and Path(named).is_dir() else None
            names |= _variables_in(folder)
            settings = cls(_secrets_dir=folder, **given)
        except ValidationError as error:
            mistakes = [cls._explain(prefix, details) for details in error.errors()]
            raise SettingsError([*mistakes, *cls._misspelt(names)]) from error
        except OSError as error:
            raise SettingsError([f"{prefix}SECRETS_DIR: {error}"]) from error
        except UnreadableSource as error:  # what lies below it may show the value
            raise SettingsError([f"a variable {prefix}... or its file: {error}"]) from None

        if misspelt := cls._misspelt(names):
            raise SettingsError(misspelt)
        return settings

    @classmethod
    def _explain(cls, prefix: str, details: Any) -> str:  # noqa: ANN401 (pydantic's own)
        field = str(details["loc"][0])
        is_secret = "SecretStr" in str(cls.model_fields[field].annotation)
        given = "" if is_secret else f", got {details['input']!r}"
        if details["type"] == "value_error":  # of a check of ours, which says it whole
            return f"{prefix}{field.upper()} {details['ctx']['error']}"
        return f"{prefix}{field.upper()}: {details['msg']}{given}"

    @classmethod
    def variables(cls) -> list[str]:
        """Return the names of all variables that are read."""
        return [f"{cls.model_config['env_prefix']}{field.upper()}" for field in cls.model_fields]

    @classmethod
    def strangers(cls, given: Mapping[str, str]) -> list[Stranger]:
        """Return the variables of this service that are no settings."""
        return of_service(given, cls.model_config["env_prefix"], cls.variables())

    @classmethod
    def _misspelt(cls, given: Mapping[str, str]) -> list[str]:
        return [str(stranger) for stranger in cls.strangers(given) if stranger.is_misspelt]

    def describe(self) -> dict[str, object]:
        """Return the resolved settings for the start-up log; secrets are masked."""
        return self.model_dump(mode="json")

    def describe_changed(self) -> dict[str, object]:
        """Return those that are not the defaults; secrets are masked."""
        return self.model_dump(mode="json", exclude_defaults=True)


class CallerSettings(ServerSettings):
    """What a service needs that calls others of the suite."""

    tls_peer_ca: Path | None = None
    """The services that are called must show a certificate of this CA (PEM), for the host name of
    their address; unset: they are called without TLS."""

    @property
    def peer_tls(self) -> TlsFiles | None:
        """With what others are called; None: without TLS."""
        if self.tls_peer_ca is None:
            return None
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_peer_ca)


def ignored(read: Sequence[ServerSettings]) -> list[str]:
    """Tell of the variables that a process has no use for, and that look as if it should.

    Args:
        read: all settings of the process.
    """
    told = [
        stranger
        for settings in read
        for stranger in settings.strangers({**os.environ, **_variables_in(settings.secrets_dir)})
    ]
    known = [name for settings in read for name in settings.variables()]
    return [str(stranger) for stranger in (*told, *of_no_service(os.environ, known))]


def _variables_in(folder: Path | None) -> dict[str, str]:
    """Return the variables that files hold, without their values; OSError."""
    return {path.name.upper(): "" for path in folder.iterdir()} if folder else {}
