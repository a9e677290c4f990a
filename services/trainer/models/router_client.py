"""The router, as the trainer sees it.

It fills collections in a new space and switches to them, for promotions; and searches, for jobs
that mine their negatives in a collection.
"""

from dataclasses import dataclass

from pydantic import SecretStr

from services.shared.auth import ACTING_FOR
from services.shared.channel import Peer
from services.shared.errors import NotFound, Overloaded, TooLarge, peer_errors
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from services.shared.server import channel_options
from services.shared.tls import TlsFiles
from services.shared.trace import outgoing


@dataclass(frozen=True, slots=True)
class Collection:
    """What a promotion wants to know of a collection."""

    name: str
    model: str
    aliases: tuple[str, ...]
    step: str
    """Of the change that it is the target of: "ready" and "watch" wait; "": there is none."""
    done: int
    total: int
    error: str
    """Why the change has stopped; "": it has not."""


class RouterClient:
    """Calls a router over gRPC; close it when done. Unavailable: it cannot be reached.

    Args:
        address: host:port.
        api_key: sent as a bearer token; None: none is sent.
        timeout_s: longest wait for an answer.
        max_message_bytes: longest message that is sent or taken.
        tls: what is shown, and of which CA the router must be; None: nothing is encrypted.
    """

    def __init__(
        self,
        address: str,
        api_key: SecretStr | None,
        timeout_s: float,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
    ) -> None:
        self._peer = Peer(
            address, pb_grpc.RouterServiceStub, channel_options(max_message_bytes), tls
        )
        key = api_key.get_secret_value() if api_key else ""
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._timeout_s = timeout_s

    async def find(self, name: str, tenant: str | None = None) -> Collection | None:
        """Return a collection by name or alias; None: there is none, or none that a tenant sees."""
        try:
            with peer_errors("router"):
                answer = await self._peer.stub.GetCollection(
                    pb.GetCollectionRequest(name=name),
                    timeout=self._timeout_s,
                    metadata=(*self._metadata, *_acting_for(tenant), *outgoing()),
                )
        except NotFound:
            return None
        found = answer.collection
        change = found.change
        return Collection(
            name=found.name,
            model=found.model,
            aliases=tuple(found.aliases),
            step=change.step,
            done=change.done,
            total=change.total,
            error=change.error,
        )

    async def search(self, collection: str, text: str, limit: int, tenant: str | None) -> list[str]:
        """Return the texts of what a search finds, best first; of a tenant, among its own points.

        Explained, so that it counts as no live search: its recall is not watched, and the vector
        of its text is not kept as one of those that users ask with.

        Raises:
            TooLarge: what it finds is longer than a message may be.
        """
        request = pb.SearchRequest(collection=collection, text=text, limit=limit, explain=True)
        try:
            with peer_errors("router"):
                answer = await self._peer.stub.Search(
                    request,
                    timeout=self._timeout_s,
                    metadata=(*self._metadata, *_acting_for(tenant), *outgoing()),
                )
        except Overloaded as error:
            if "message larger than max" in error.message:  # gRPC's own, of the same code
                raise TooLarge("what a search finds must fit into a message") from error
            raise
        return [hit.text for hit in answer.hits if hit.text]

    async def uses(self, model: str) -> bool:
        """Whether a collection lies in a model's space."""
        with peer_errors("router"):
            answer = await self._peer.stub.ListCollections(
                pb.ListCollectionsRequest(),
                timeout=self._timeout_s,
                metadata=(*self._metadata, *outgoing()),
            )
        return any(collection.model == model for collection in answer.collections)

    async def migrate(self, alias: str, target: str, model: str, watches: bool) -> None:
        """Begin to fill a target that then waits to be switched to; it goes on by itself."""
        request = pb.MigrateCollectionRequest(
            source=alias, target=target, model=model, alias=alias, hold=True, watch=watches
        )
        with peer_errors("router"):
            call = self._peer.stub.MigrateCollection(
                request, timeout=self._timeout_s, metadata=(*self._metadata, *outgoing())
            )
            # The first message comes when the target has been made; the router needs no listener.
            await anext(aiter(call), None)
            call.cancel()

    async def cut_over(self, target: str) -> None:
        """Point the alias at a target that is ready."""
        with peer_errors("router"):
            await self._peer.stub.CutOver(
                pb.CutOverRequest(name=target),
                timeout=self._timeout_s,
                metadata=(*self._metadata, *outgoing()),
            )

    async def roll_back(self, target: str) -> None:
        """Point the alias at the source again; the target is kept current still."""
        with peer_errors("router"):
            await self._peer.stub.RollBack(
                pb.RollBackRequest(name=target),
                timeout=self._timeout_s,
                metadata=(*self._metadata, *outgoing()),
            )

    async def give_up(self, target: str) -> None:
        """End a migration that has not switched, and delete its target; harmless if it is gone."""
        try:
            with peer_errors("router"):
                await self._peer.stub.CancelChange(
                    pb.CancelChangeRequest(name=target),
                    timeout=self._timeout_s,
                    metadata=(*self._metadata, *outgoing()),
                )
        except NotFound:
            return

    async def finish(self, target: str) -> None:
        """Let source and target part."""
        with peer_errors("router"):
            await self._peer.stub.FinishMigration(
                pb.FinishMigrationRequest(name=target),
                timeout=self._timeout_s,
                metadata=(*self._metadata, *outgoing()),
            )

    async def close(self) -> None:
        await self._peer.close()


def _acting_for(tenant: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata by which an operator's call is a tenant's; None: it stays its own."""
    return () if tenant is None else ((ACTING_FOR, tenant),)
