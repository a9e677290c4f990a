"""The encoders, as a promotion sees them: all load a model, and all point a name at it.

A name of several addresses, as a headless Service's is, stands for several replicas. Calls on texts
take turns between them; these here are made to each.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from pydantic import SecretStr

from services.shared.address import host_of, resolve
from services.shared.channel import Options, Peer
from services.shared.errors import NotFound, WrongState, peer_errors
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.tls import TlsFiles
from services.shared.trace import outgoing

T = TypeVar("T")

_Stub = Any  # the generated stubs' types are generic over channels


class EncoderClient:
    """Calls every encoder behind an address over gRPC; close it when done.

    Everything here may be done twice. Unavailable, of each: one of them cannot be reached; the
    message says which, and the others have done it.

    Args:
        address: host:port; the name is looked up anew for each call.
        api_key: sent as a bearer token; None: none is sent.
        timeout_s: longest wait for an answer; a model is loaded and measured in that time.
        tls: what is shown, and of which CA the encoders must be; None: nothing is encrypted.
    """

    def __init__(
        self,
        address: str,
        api_key: SecretStr | None,
        timeout_s: float,
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._peers: dict[str, Peer[Any]] = {}
        key = api_key.get_secret_value() if api_key else ""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._timeout_s = timeout_s

    async def models_of(self, name: str) -> list[str]:
        """Return what a name points at, or an id stands for, at each; "": nothing is called so."""
        return [model.id for model in await self._each(self._find(name))]

    async def load(self, folder: str, model_id: str, space_id: str) -> None:
        """Serve a model folder by an id, wherever it is not served yet.

        Raises:
            WrongState: another model is served by that id.
        """

        async def load(stub: _Stub) -> str:
            found = await self._find(model_id)(stub)
            if found.space_id == space_id:
                return space_id
            request = pb.LoadModelRequest(source=folder, id=model_id)
            answer = await stub.LoadModel(
                request, timeout=self._timeout_s, metadata=(*self._metadata, *outgoing())
            )
            return str(answer.model.space_id)

        for served in await self._each(load):
            if served != space_id:
                raise WrongState(
                    f"the encoder serves another model as {model_id}: its space is {served}, and "
                    f"should be {space_id}"
                )

    async def unload(self, model_id: str) -> None:
        """Stop serving a model, unless a name points at it; harmless if it is gone."""

        async def unload(stub: _Stub) -> None:
            request = pb.UnloadModelRequest(id=model_id)
            try:
                await stub.UnloadModel(
                    request, timeout=self._timeout_s, metadata=(*self._metadata, *outgoing())
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in (NotFound.grpc_code, WrongState.grpc_code):
                    raise

        await self._each(unload)

    async def set_alias(self, alias: str, model_id: str) -> None:
        """Point a name at a loaded model."""

        async def point(stub: _Stub) -> None:
            request = pb.SetAliasRequest(alias=alias, model=model_id)
            await stub.SetAlias(
                request, timeout=self._timeout_s, metadata=(*self._metadata, *outgoing())
            )

        await self._each(point)

    async def close(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self._peers.values()))

    def _find(self, name: str) -> Callable[[_Stub], Awaitable[pb.Model]]:
        """Return a call that finds a model by id or alias; an empty one stands for none."""

        async def find(stub: _Stub) -> pb.Model:
            request = pb.GetModelRequest(model=name)
            try:
                answer = await stub.GetModel(
                    request, timeout=self._timeout_s, metadata=(*self._metadata, *outgoing())
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not NotFound.grpc_code:
                    raise
                return pb.Model()
            model: pb.Model = answer.model
            return model

        return find

    async def _each(self, call: Callable[[_Stub], Awaitable[T]]) -> list[T]:
        """Make a call to all at once, and return their answers when the last one is there."""
        peers = await self._find_peers()

        async def ask(address: str, peer: Peer[Any]) -> T:
            where = f"encoder at {address.partition(':')[2]}" if len(peers) > 1 else "encoder"
            with peer_errors(where):
                return await call(peer.stub)

        asking = (ask(address, peer) for address, peer in peers.items())
        answers = await asyncio.gather(*asking, return_exceptions=True)
        given: list[T] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            given.append(answer)
        return given

    async def _find_peers(self) -> dict[str, Peer[Any]]:
        addresses = await resolve(self._address)
        # Each shows a certificate for the name of all.
        host = host_of(self._address)
        options: Options = (("grpc.ssl_target_name_override", host),) if self._tls and host else ()
        for gone in self._peers.keys() - set(addresses):
            await self._peers.pop(gone).close()
        for address in addresses:
            if address not in self._peers:
                stub = pb_grpc.EncoderServiceStub
                self._peers[address] = Peer(address, stub, options, self._tls)
        return dict(self._peers)
