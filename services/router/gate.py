"""Who may write to a collection now: while it is being reindexed, nobody.

Writes to a collection that is being read into another one would be missing there. The gate is
this router's own: of several routers over one Qdrant server, one should do writes and reindexes.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.router import tenants
from services.router.storage.store import Collection, Store
from services.shared.errors import Unavailable, WrongState


class WriteGate:
    """Lets writes through, or stops them and waits until none is under way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writes: Counter[str] = Counter()
        self._closed: set[str] = set()
        self._ended = asyncio.Condition()

    @asynccontextmanager
    async def writing(self, name: str, tenant: str | None) -> AsyncIterator[Collection]:
        """Find the collection behind a name, for a tenant, and hold it open for one write.

        The name is looked up again once the gate is passed: an alias that moved in between would
        send the write to a collection that nobody reads any more.

        Raises:
            NotFound: no such name.
            Unavailable: it is being reindexed.
        """
        while True:
            collection = await tenants.find(self._store, name, tenant)
            self.check_open(collection.name)
            self._writes[collection.name] += 1
            try:
                if await tenants.find(self._store, name, tenant) == collection:
                    yield collection
                    return
            finally:
                self._writes[collection.name] -= 1
                async with self._ended:
                    self._ended.notify_all()

    def check_open(self, name: str) -> None:
        """Refuse to change a collection that is being reindexed.

        Raises:
            Unavailable: it is; try again later.
        """
        if name in self._closed:
            raise Unavailable(
                f"collection {name!r} is being reindexed; it can be changed again when that ends"
            )

    @asynccontextmanager
    async def closed(self, name: str) -> AsyncIterator[None]:
        """Refuse writes to a collection; entered once those under way have ended.

        Raises:
            WrongState: somebody has closed it already.
        """
        if name in self._closed:
            raise WrongState(f"collection {name!r} is being reindexed already")
        self._closed.add(name)
        try:
            async with self._ended:
                await self._ended.wait_for(lambda: self._writes[name] == 0)
            yield
        finally:
            self._closed.discard(name)
