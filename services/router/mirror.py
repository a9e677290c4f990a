"""Writes to a collection that is being migrated go to its other half too, in that one's space.

So both hold the same points all the time, and either can answer. A write is acknowledged when it
is durable in both.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.attributes import Attributes
from services.router.storage.store import Collection, Point, Store
from services.router.translate import Translator
from services.shared.errors import NotFound
from services.shared.vectors import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Mirrored:
    """What of a batch goes to the other half."""

    name: str
    """Of that collection."""
    vectors_BD: Array
    """In its space."""


class Mirror:
    """Repeats writes.

    Args:
        store: where both collections are.
        translator: makes vectors for the other one.
    """

    def __init__(self, store: Store, translator: Translator) -> None:
        self._store = store
        self._translator = translator

    async def translate(
        self, collection: Collection, points: Sequence[Point], vectors_BD: Array
    ) -> Mirrored | None:
        """Make what is written to the other half, if there is one, before anything is.

        Args:
            collection: that the points are written to.
            points: see there.
            vectors_BD: their full vectors, in its space.

        Raises:
            WrongState: a point needs a text, and has none.
        """
        other = await self._other(collection)
        if other is None:
            return None
        made_BD = await self._translator.vectors(collection, other, points, vectors_BD)
        return Mirrored(other.name, made_BD)

    async def upsert(self, points: Sequence[Point], mirrored: Mirrored) -> None:
        """Write points to the other half."""
        await self._store.upsert(mirrored.name, points, mirrored.vectors_BD)

    async def delete(self, collection: Collection, ids: Sequence[str], tenant: str | None) -> None:
        """Delete points there."""
        other = await self._other(collection)
        if other is not None:
            await self._store.delete(other.name, ids, tenant)

    async def set_attributes(
        self,
        collection: Collection,
        ids: Sequence[str],
        attributes: Attributes,
        tenant: str | None,
    ) -> None:
        """Replace attributes there; of points that are not copied yet they come with the copy."""
        other = await self._other(collection)
        if other is not None:
            await self._store.set_attributes(other.name, ids, attributes, tenant)

    async def _other(self, collection: Collection) -> Collection | None:
        if collection.mirror is None:
            return None
        try:
            return await self._store.find(collection.mirror["to"])
        except NotFound:
            log.warning("%s is mirrored to a collection that is gone", collection.name)
            return None
