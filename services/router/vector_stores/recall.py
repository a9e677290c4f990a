"""What searches of vector stores keep of the exact result: measured on demand, and seen live.

The same as the RPCs of that name do for collections; only what a store's name stands for is found
here.
"""

import asyncio
from dataclasses import replace

from services.router import tenants
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.calibration import Calibration
from services.router.recall.promise import Promises
from services.router.recall.shadow import Shadow
from services.router.recall.watched import Watched
from services.router.storage.store import Collection, Store
from services.router.vector_stores.stores import VectorStore, VectorStores
from services.shared.errors import NotFound, WrongState


class StoreRecall:
    """The recall of vector stores.

    Args:
        stores: tells the collection of each.
        store: where the collections are.
        calibrator: measures them.
        promises: reads what was measured.
        shadow: watches live searches.
    """

    def __init__(
        self,
        stores: VectorStores,
        store: Store,
        calibrator: Calibrator,
        promises: Promises,
        shadow: Shadow,
    ) -> None:
        self._stores = stores
        self._store = store
        self._calibrator = calibrator
        self._promises = promises
        self._shadow = shadow

    async def calibrate(self, store_id: str, wanted: Calibrate, tenant: str | None) -> Calibration:
        """Measure which plans keep which recall on a store; it takes minutes.

        Args:
            store_id: of the store.
            wanted: what is asked for; of which collection is found here.
            tenant: who asks; None: an operator.

        Raises:
            InvalidRequest: a number is out of bounds, or there are too few chunks or queries.
            NotFound: no such store.
            WrongState: it has expired, is a tenant's, or is being calibrated already.
        """
        store, collection = await self._find(store_id, tenant)
        if store.tenant is not None:
            raise WrongState(
                f"vector store {store_id} is a tenant's; tenants' searches run without a "
                "calibration, and keep a recall_target by exact search",
                "vector_store_id",
            )
        wanted = replace(wanted, collection=collection.name)
        return await self._calibrator.run(wanted, lambda *_: None)

    async def calibration(self, store_id: str, tenant: str | None) -> Calibration:
        """Return what was measured last; NotFound: no such store, or nothing was; WrongState."""
        _, collection = await self._find(store_id, tenant)
        calibration = self._promises.calibration(collection)
        if calibration is None:
            raise NotFound(
                f"vector store {store_id} is not calibrated; POST to its /calibrate measures it",
                "vector_store_id",
            )
        return calibration

    async def seen(self, store_id: str, tenant: str | None) -> dict[str, Watched]:
        """Return {slice: what is known of its live searches}, of a tenant its own; NotFound."""
        _, collection = await self._find(store_id, tenant)
        return tenants.own_slices(self._shadow.seen(collection), tenant)

    async def _find(self, store_id: str, tenant: str | None) -> tuple[VectorStore, Collection]:
        store = await asyncio.to_thread(self._stores.get, store_id, tenant)
        store.check_open()
        return store, await self._store.find(store.collection)
