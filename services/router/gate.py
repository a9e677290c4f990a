"""Writes to a collection, and moments in which there is none.

While a collection is moved to another one, each page of it is copied in such a moment, and so is
the switch from one to the other made: writers wait some milliseconds, and none is lost between the
two. The gate is this router's own: of several routers over one Qdrant server, one should do the
writes while a collection is migrated.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.router import tenants
from services.router.storage.store import Collection, Store


class WriteGate:
    """Lets writes through, or lets them wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writes: Counter[str] = Counter()
        self._paused: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def writing(self, name: str, tenant: str | None) -> AsyncIterator[Collection]:
        """Find the collection behind a name, for a tenant, and hold it open for one write.

        The name is looked up again once the gate is passed: an alias that moved in between would
        send the write to a collection that nobody reads any more.

        Raises:
            NotFound: no such name.
        """
        while True:
            found = await tenants.find(self._store, name, tenant)
            async with self._changed:
                await self._changed.wait_for(lambda: not self._paused[found.name])  # noqa: B023
                self._writes[found.name] += 1
            try:
                collection = await tenants.find(self._store, name, tenant)
                if collection == found:
                    yield collection
                    return
            finally:
                async with self._changed:
                    self._writes[found.name] -= 1
                    self._changed.notify_all()

    @asynccontextmanager
    async def paused(self, *names: str) -> AsyncIterator[None]:
        """Let writes to some collections wait; entered once those under way have ended."""
        self._paused.update(names)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not any(self._writes[name] for name in names))
            yield
        finally:
            self._paused.subtract(names)
            async with self._changed:
                self._changed.notify_all()
