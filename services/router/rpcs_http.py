"""Every RPC of the three services over the router's HTTP port, as browsers and curl can call it.

The router's own calls go to its gRPC from within, the others to where it has the encoder and the
trainer; see `services.shared.connect`.
"""

from typing import Any

from google.protobuf.descriptor import FileDescriptor
from starlette.routing import Route

from services.router.scopes import RPCS_OPEN_TO_TENANTS
from services.router.settings import RouterSettings
from services.shared.channel import Peer
from services.shared.connect import Connect
from services.shared.pb import (
    encoder_pb2,
    encoder_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)
from services.shared.rpcs import ENCODER_OPEN_TO_TENANTS, over_http
from services.shared.server import channel_options

OPEN_TO_TENANTS = frozenset(
    {
        *(over_http("RouterService", rpc) for rpc in RPCS_OPEN_TO_TENANTS),
        *(over_http("EncoderService", rpc) for rpc in ENCODER_OPEN_TO_TENANTS),
    }
)

_AWAY = (
    "the {} cannot be reached: see that it runs, and that MATRYOSHKA_ROUTER_{}_ADDRESS names its "
    "gRPC"
)
_CLOSED = (
    "gRPC asks for certificates, and HTTP here neither for these nor for keys: call it over gRPC, "
    "or set TLS_HTTP_CLIENT_CA, API_KEY or KEYS_FILE"
)


class RpcsHttp:
    """The routes; start it on the loop that serves them.

    Args:
        settings: of the router.
        own_grpc: where its gRPC is, for calls from within.
    """

    def __init__(self, settings: RouterSettings, own_grpc: str) -> None:
        self._settings = settings
        self._own_grpc = own_grpc
        self._peers: dict[str, Peer[Any]] = {}

    def routes(self) -> list[Route]:
        return [
            *self._routes(router_pb2.DESCRIPTOR, "the router's gRPC does not answer; try again"),
            *self._routes(encoder_pb2.DESCRIPTOR, _AWAY.format("encoder", "ENCODER")),
            *self._routes(trainer_pb2.DESCRIPTOR, _AWAY.format("trainer", "TRAINER")),
        ]

    def start(self) -> None:
        s, options = self._settings, channel_options(self._settings.max_message_bytes)
        router, encoder, trainer = (
            router_pb2_grpc.RouterServiceStub,
            encoder_pb2_grpc.EncoderServiceStub,
            trainer_pb2_grpc.TrainerServiceStub,
        )
        self._peers = {
            "RouterService": Peer(self._own_grpc, router, options),
            "EncoderService": Peer(s.encoder_address, encoder, options, s.peer_tls),
            "TrainerService": Peer(s.trainer_address, trainer, options, s.peer_tls),
        }

    async def stop(self) -> None:
        for peer in self._peers.values():
            await peer.close()

    def _routes(self, file: FileDescriptor, away: str) -> list[Route]:
        (service,) = file.services_by_name.values()
        connect = Connect(
            service,
            lambda: self._peers[service.name].stub,
            away,
            self._settings.max_body_bytes,
            _why_closed(self._settings),
        )
        return connect.routes()


def _why_closed(settings: RouterSettings) -> str:
    """Say why RPCs are for callers of gRPC only; "": they are not.

    Whoever needs no certificate and no key here would come past the certificates that gRPC asks
    for, this router's own or that of a service which it calls with its certificate.
    """
    asks = settings.tls_http_client_ca or settings.api_key or settings.keys_file
    shows = settings.tls_peer_ca and settings.tls_cert
    return "" if asks or not (settings.tls_grpc_client_ca or shows) else _CLOSED
