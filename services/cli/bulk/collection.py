"""The collection that is written to: looked up, and made if the user asks for it."""

from typing import Any

import grpc

from services.cli.bulk.sender import Router
from services.router.sizes import BITS
from services.shared.errors import InvalidRequest, peer_errors
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc


def creation(collection: str, model: str, dims: str, words: str) -> pb.CreateCollectionRequest:
    """Return what makes the collection; InvalidRequest: see `parse_sizes`."""
    text_index = pb.TextIndex(language=words) if words else None
    return pb.CreateCollectionRequest(
        name=collection, model=model, sizes=parse_sizes(dims), text_index=text_index
    )


def parse_sizes(text: str, option: str = "--dims", default: str = "none") -> list[pb.Size]:
    """Read sizes such as `64,128:int8,384`.

    Args:
        text: what the user gave.
        option: where, for the error.
        default: codes of a size that names none.

    Raises:
        InvalidRequest: says what is accepted.
    """
    sizes = []
    for item in filter(None, text.split(",")):
        dim, _, codes = item.strip().partition(":")
        codes = codes or default
        if not dim.isdecimal() or codes not in BITS:
            raise InvalidRequest(
                f"{option} must be sizes such as 64,128:int8, got {item.strip()!r}; codes are "
                f"{', '.join(BITS)}"
            )
        name = "UNSPECIFIED" if codes == "none" else codes.upper()
        sizes.append(
            pb.Size(dim=int(dim), quantization=pb.Quantization.Value(f"QUANTIZATION_{name}"))
        )
    return sizes


async def contact(router_at: Router, name: str, create: pb.CreateCollectionRequest | None) -> int:
    """Return how many points a collection has; 0 if it is still to be created.

    Raises:
        InvalidRequest: it is not there, or is there with other sizes than asked for.
        ServiceError: the router cannot be reached, or refuses the key.
    """
    async with router_at.connect() as channel:
        router: Any = pb_grpc.RouterServiceStub(channel)
        request = pb.GetCollectionRequest(name=name)
        try:
            answer = await router.GetCollection(request, metadata=router_at.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                if create:
                    return 0
                raise InvalidRequest(
                    f"there is no collection {name!r}; --create makes it"
                ) from None
            with peer_errors(f"router at {router_at.address}"):
                raise
    wanted = sorted(size.dim for size in create.sizes) if create else []
    sizes = [size.dim for size in answer.collection.sizes]
    if not set(wanted) <= set(sizes):
        raise InvalidRequest(
            f"the collection {name!r} is there already, with the sizes "
            f"{', '.join(map(str, sizes))}; leave --create out, or name another collection"
        )
    return int(answer.collection.num_points)


async def make(router_at: Router, create: pb.CreateCollectionRequest) -> pb.Collection | None:
    """Create a collection; None: it is there already. ServiceError: see `contact`."""
    async with router_at.connect() as channel:
        router: Any = pb_grpc.RouterServiceStub(channel)
        try:
            answer = await router.CreateCollection(create, metadata=router_at.metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return None
            with peer_errors(f"router at {router_at.address}"):
                raise
    made: pb.Collection = answer.collection
    return made
