"""Collections by name: create, describe, delete, and point aliases at them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.router import tenants
from services.router.changes.change import read_change
from services.router.encoder_client import EncoderClient
from services.router.hybrid.text_index import TextIndex, check_text_index
from services.router.metrics import RouterMetrics
from services.router.sizes import Memory, SizeRequest, memory, resolve_sizes
from services.router.spread import DEFAULT_SPREAD, Spread, check_spread
from services.router.storage.store import Collection, Store, check_name
from services.shared.errors import NotFound, WrongState


@dataclass(frozen=True, slots=True)
class Description:
    """A collection and what is true of it now."""

    collection: Collection
    num_points: int
    aliases: tuple[str, ...]
    memory: tuple[Memory, ...]
    """In the order of the collection's sizes."""


class Catalog:
    """The collections of a store.

    Args:
        store: where they are.
        encoder: knows the models.
        metrics: gets the number of collections.
        most: shards, and replicas of each, that one collection may have.
        on_deleted: told the name of a collection that was deleted.
    """

    def __init__(
        self,
        store: Store,
        encoder: EncoderClient,
        metrics: RouterMetrics,
        most: Spread,
        on_deleted: Callable[[str], None],
    ) -> None:
        self._on_deleted = on_deleted
        self._most = most
        self._store = store
        self._encoder = encoder
        self._metrics = metrics

    async def create(
        self,
        name: str,
        model: str,
        sizes: Sequence[SizeRequest],
        tenant: str | None = None,
        text_index: TextIndex | None = None,
        spread: Spread = DEFAULT_SPREAD,
    ) -> Description:
        """Create an empty collection for a model that the encoder serves.

        Args:
            name: of the collection.
            model: id or alias.
            sizes: beside the full one.
            tenant: whose it is alone; None: every tenant's.
            text_index: how its texts are kept for search by words; None: they are not.
            spread: how it shall lie on a server's nodes.

        Raises:
            InvalidRequest: the name, a size, the language or the spread is out of bounds.
            NotFound: the encoder does not serve the model.
            AlreadyExists: a collection or an alias has the name.
        """
        check_name(name, "name")
        check_spread(spread, self._most)
        if text_index is not None:
            check_text_index(text_index)
        served = await self._encoder.get_model(model)
        resolved = resolve_sizes(sizes, served.dim, served.declared_dims)
        collection = Collection(
            name, served.id, served.space_id, resolved,
            tenant=tenant, text_index=text_index, spread=spread,
        )  # fmt: skip
        created = await self._store.create(collection)
        await self.count()
        return Description(created, 0, (), memory(resolved, 0))

    async def get(self, name: str, tenant: str | None) -> Description:
        """Describe the collection behind a name or alias, as a tenant sees it; NotFound."""
        collection = await tenants.find(self._store, name, tenant)
        return await self._describe(collection, await self._store.aliases(), tenant)

    async def list(self, tenant: str | None) -> list[Description]:
        """Describe a tenant's collections, by name; one dropped meanwhile is left out."""
        aliases = await self._store.aliases()
        collections = await self._store.collections()
        seen = [collection for collection in collections if tenants.may_see(collection, tenant)]

        async def describe(collection: Collection) -> Description | None:
            try:
                return await self._describe(collection, aliases, tenant)
            except NotFound:
                return None

        described = await asyncio.gather(*map(describe, seen))
        return [description for description in described if description is not None]

    async def delete(self, name: str) -> None:
        """Delete a collection.

        Raises:
            NotFound: no collection has this name; aliases are not followed.
            WrongState: an alias points at it, or it is being migrated.
        """
        aliases = await self._store.aliases()
        pointing = sorted(alias for alias, target in aliases.items() if target == name)
        if pointing:
            raise WrongState(
                f"collection {name!r} is what {', '.join(map(repr, pointing))} points at; point "
                "the alias at another collection first"
            )
        if name in aliases:
            raise WrongState(
                f"{name!r} is an alias of {aliases[name]!r}; delete a collection by its own name"
            )
        for other in await self._store.collections():
            change = read_change(other)
            if (
                change is not None
                and change.kind == "migrate"
                and name in (other.name, change.source)
            ):
                raise WrongState(
                    f"collection {name!r} is part of the migration to {other.name!r}; "
                    "FinishMigration or CancelChange ends it"
                )
        await self._store.drop(name)
        self._on_deleted(name)
        await self.count()

    async def set_alias(self, alias: str, collection: str) -> None:
        """Point a name at a collection; NotFound, or AlreadyExists if a collection has the name."""
        check_name(alias, "alias")
        await self._store.set_alias(alias, collection)

    async def count(self) -> None:
        """Bring the number of collections in the metrics up to date."""
        self._metrics.collections.set(len(await self._store.collections()))

    async def _describe(
        self, collection: Collection, aliases: dict[str, str], tenant: str | None
    ) -> Description:
        num_points = await self._store.count(collection.name, tenant=tenant)
        # Whom an alias is for is not known, so no tenant is shown any.
        shown = aliases if tenant is None else {}
        pointing = sorted(alias for alias, name in shown.items() if name == collection.name)
        if tenant is not None:  # both say something of all its points
            collection = replace(collection, calibration=None, change=None)
        return Description(
            collection, num_points, tuple(pointing), memory(collection.sizes, num_points)
        )
