"""The encoder, as a promotion sees it: it loads a model, and points a name at it."""

import contextlib

from pydantic import SecretStr

from services.shared.channel import Peer
from services.shared.errors import NotFound, WrongState, peer_errors
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.tls import TlsFiles


class EncoderClient:
    """Calls an encoder over gRPC; close it when done. Unavailable: it cannot be reached.

    Args:
        address: host:port.
        api_key: sent as a bearer token; None: none is sent.
        timeout_s: longest wait for an answer; a model is loaded and measured in that time.
        tls: what is shown, and of which CA the encoder must be; None: nothing is encrypted.
    """

    def __init__(
        self,
        address: str,
        api_key: SecretStr | None,
        timeout_s: float,
        tls: TlsFiles | None = None,
    ) -> None:
        self._peer = Peer(address, pb_grpc.EncoderServiceStub, tls=tls)
        key = api_key.get_secret_value() if api_key else ""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._timeout_s = timeout_s

    async def model_of(self, alias: str) -> str:
        """Return the id of the model that a name points at; "": nothing is called so."""
        try:
            with peer_errors("encoder"):
                answer = await self._peer.stub.GetModel(
                    pb.GetModelRequest(model=alias),
                    timeout=self._timeout_s,
                    metadata=self._metadata,
                )
        except NotFound:
            return ""
        return answer.model.id

    async def load(self, folder: str, model_id: str) -> str:
        """Serve a model folder by an id; return its space id. Loading it again is harmless."""
        with peer_errors("encoder"):
            answer = await self._peer.stub.LoadModel(
                pb.LoadModelRequest(source=folder, id=model_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )
        return answer.model.space_id

    async def unload(self, model_id: str) -> None:
        """Stop serving a model, unless a name points at it; harmless if it is gone."""
        with contextlib.suppress(NotFound, WrongState), peer_errors("encoder"):
            await self._peer.stub.UnloadModel(
                pb.UnloadModelRequest(id=model_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )

    async def set_alias(self, alias: str, model_id: str) -> None:
        """Point a name at a loaded model."""
        with peer_errors("encoder"):
            await self._peer.stub.SetAlias(
                pb.SetAliasRequest(alias=alias, model=model_id),
                timeout=self._timeout_s,
                metadata=self._metadata,
            )

    async def close(self) -> None:
        await self._peer.close()
