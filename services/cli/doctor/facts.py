"""What was seen of a deployment, before anybody judges it."""

from dataclasses import dataclass

from services.cli.doctor.targets import Name


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that was not answered as it should be."""

    code: str
    """Name of a gRPC status."""
    message: str


@dataclass(frozen=True, slots=True)
class Http:
    """What a service's HTTP port said."""

    url: str
    error: str = ""
    """Why nothing was said; "": something was."""
    is_live: bool = False
    is_ready: bool = False
    skew_s: float | None = None
    """How far its clock is ahead of this machine's, to about a second; None: it does not tell."""
    metrics: str | None = None
    """The text of /metrics; None: there is none."""


@dataclass(frozen=True, slots=True)
class Grpc:
    """What a service's gRPC port said."""

    address: str
    health: str = ""
    """Of this service: SERVING, NOT_SERVING; "": see `failure`."""
    failure: Failure | None = None
    call: Failure | None = None
    """Why a call with the key was not answered; None: it was."""
    asks_for_key: bool = True
    """Whether the same call without a key is refused."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the encoder serves."""

    id: str
    space_id: str
    dim: int
    """0: it makes no vectors."""
    device: str
    """"": the encoder does not say."""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection that the router keeps."""

    name: str
    model: str
    space_id: str
    dim: int
    num_points: int
    change_error: str = ""
    """Why a change of it ended before its end."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service, from both sides."""

    http: Http
    grpc: Grpc


@dataclass(frozen=True, slots=True)
class Facts:
    """The whole deployment."""

    services: dict[Name, Service]
    """Those that it has."""
    models: tuple[Model, ...] = ()
    collections: tuple[Collection, ...] = ()
    searched: str = ""
    """The collection in which a text was searched; "": none."""
    search: Failure | None = None
    """Why that found nothing out."""
    failed_jobs: tuple[str, ...] = ()
    """Of the newest jobs those that failed."""
