"""What the commands on a collection's names do: point an alias at it, or delete it."""

from services.cli.peer import RunningService
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc


class Router(RunningService):
    """Where the router is."""

    stub = pb_grpc.RouterServiceStub


def alias(router: Router, name: str, collection: str) -> None:
    """Point a name at a collection."""
    router.ask(
        "SetCollectionAlias", pb.SetCollectionAliasRequest(alias=name, collection=collection)
    )
    print(f"{name} points at {collection}")


def delete(router: Router, collection: str) -> None:
    """Delete a collection."""
    router.ask("DeleteCollection", pb.DeleteCollectionRequest(name=collection))
    print(f"{collection} is deleted")
