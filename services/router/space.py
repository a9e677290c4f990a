"""Vectors of two spaces never meet: the one check, in one place."""

from services.router.storage.store import Collection
from services.shared.errors import WrongState


def check_space(collection: Collection, space_id: str, what: str) -> None:
    """Refuse vectors of another space than the collection's.

    Args:
        collection: what the vectors are to be stored in or compared with.
        space_id: the space they are from.
        what: what they are, for the message.

    Raises:
        WrongState: the message holds both ids.
    """
    if space_id != collection.space_id:
        raise WrongState(
            f"{what} is of space {space_id!r}, but collection {collection.name!r} holds space "
            f"{collection.space_id!r}; MigrateCollection changes its model"
        )
