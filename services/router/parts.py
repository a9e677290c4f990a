"""What the router is made of: its long-lived objects, built, started and stopped in order."""

import asyncio
import logging
import ssl
from contextlib import AsyncExitStack

from services.router.catalog import Catalog
from services.router.changes.agreements import Agreements
from services.router.changes.change import Kind
from services.router.changes.changes import Changes
from services.router.changes.comparison import Comparison
from services.router.changes.migrate import Migrator
from services.router.changes.migrations import MigrateWork
from services.router.changes.running import Work
from services.router.changes.sample import Sampler
from services.router.changes.sizes import SizeWork
from services.router.encoder_client import EncoderClient
from services.router.gate import WriteGate
from services.router.hybrid.hybrid import HybridSearcher
from services.router.hybrid.idf import Rarity
from services.router.metrics import RouterMetrics
from services.router.mirror import Mirror
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.recall.evaluate import Evaluator
from services.router.recall.live import Live
from services.router.recall.lost import LostSearches
from services.router.recall.promise import Promises
from services.router.recall.queries import Queries
from services.router.recall.recent import Recent
from services.router.recall.shadow import Shadow
from services.router.searcher import Searcher
from services.router.settings import RouterSettings
from services.router.spread import Spread
from services.router.storage.edge import EdgeStore
from services.router.storage.qdrant import QdrantStore
from services.router.storage.qdrant_retry import Retry
from services.router.storage.store import Collection, Store
from services.router.trainer_client import TrainerClient
from services.router.translate import Translator
from services.router.upsert import Writer
from services.router.vector_stores.recall import StoreRecall
from services.router.vector_stores.retrieval import Retrieval
from services.shared.database import Database
from services.shared.errors import ServiceError
from services.shared.tls import TlsFiles

log = logging.getLogger(__name__)


class Parts:
    """The router's objects; most are there once it has started.

    Args:
        settings: see there.
        metrics: of the router.
    """

    def __init__(self, settings: RouterSettings, metrics: RouterMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.store = _build_store(settings, metrics)
        self._gate = WriteGate(self.store)
        self._database = Database(settings.database.get_secret_value())
        self.retrieval = Retrieval(settings, metrics, self._database)
        self.agreements = Agreements(self._database, settings.shadow_slices)
        self._recalibrations: set[asyncio.Task[None]] = set()
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Build and start everything, and go on with what was left undone."""
        # grpc.aio wants its channels built on the loop that uses them.
        s = self._settings
        encoder = EncoderClient(
            s.encoder_address,
            s.encoder_api_key.get_secret_value() if s.encoder_api_key else None,
            s.encoder_timeout_s,
            s.encoder_batch_texts,
            s.encoder_concurrency,
            s.max_message_bytes,
            s.encoder_max_wait_s,
            s.peer_tls,
        )
        self._open.push_async_callback(encoder.close)
        store, gate, metrics = self.store, self._gate, self._metrics
        self._open.callback(self._database.close)
        # The database may be a file in it.
        await asyncio.to_thread(s.data_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(self._database.open)
        await store.open()
        self._open.push_async_callback(store.close)
        most = Spread(s.max_shards, s.max_replicas)
        self.catalog = Catalog(store, encoder, metrics, most, self._on_deleted)
        self.promises = Promises(s.max_candidates)
        rarity = Rarity(store, s.rarity_documents, s.rarity_age_s)
        self._open.push_async_callback(rarity.stop)
        self.searcher = Searcher(
            store, encoder, metrics, self.promises, HybridSearcher(store, rarity),
            s.max_limit, s.max_candidates, s.max_text_chars, self._on_live,
        )  # fmt: skip
        self.recent = Recent(store, s.recent_queries, s.recent_collections, s.recent_flush_s)
        self.lost = LostSearches(store, s.lost_searches, s.recent_collections)
        self.shadow = Shadow(
            store, metrics, self.lost, s.shadow_share, s.shadow_max_busy, s.shadow_queue,
            s.shadow_slices, s.recall_history_points, self._on_alarm,
        )  # fmt: skip
        for watcher in (self.recent, self.shadow):
            watcher.start()
            self._open.push_async_callback(watcher.stop)
        queries = Queries(store, encoder, self.recent, s.calibrate_queries, s.max_text_chars)
        longest = min(s.calibrate_candidates, s.max_candidates)
        self.calibrator = Calibrator(store, queries, s.calibrate_points, longest, s.max_limit)
        self.store_recall = StoreRecall(
            self.retrieval.stores, store, self.calibrator, self.promises, self.shadow
        )
        self.evaluator = Evaluator(self.searcher, s.evaluate_queries, s.max_text_chars)
        translator = Translator(encoder)
        mirror = Mirror(store, translator)
        self.writer = Writer(
            store, encoder, gate, mirror, metrics, s.max_batch_points, s.max_text_chars,
            s.upsert_read_ahead,
        )  # fmt: skip
        trainer = TrainerClient(
            s.trainer_address,
            s.trainer_api_key.get_secret_value() if s.trainer_api_key else None,
            s.trainer_timeout_s,
            s.max_message_bytes,
            s.peer_tls,
        )
        self._open.push_async_callback(trainer.close)
        spool = s.data_dir / "samples"
        sampler = Sampler(store, self.recent, trainer, spool, s.nest_points)
        self.sizes = SizeWork(store, self.calibrator, sampler, trainer)
        migrator = Migrator(
            store, encoder, translator, self.recent, gate, metrics, s.migrate_page_points, most
        )
        self.migrations = MigrateWork(store, self.calibrator, migrator, self.agreements)
        works: dict[Kind, Work] = {
            "resize": self.sizes, "nest": self.sizes, "migrate": self.migrations
        }  # fmt: skip
        self.comparison = Comparison(
            store, encoder, translator, self.promises, self.recent, self.agreements, metrics,
            s.shadow_share, s.shadow_max_busy, s.shadow_queue, s.shadow_slices,
        )  # fmt: skip
        self.comparison.start()
        self._open.push_async_callback(self.comparison.stop)
        self.changes = Changes(store, works, metrics, s.change_lease_s, s.change_patience_s)
        self.changes.start()
        self._open.push_async_callback(self.changes.stop)
        await self.catalog.count()
        self._open.push_async_callback(self.retrieval.stop)
        await self.retrieval.start(self.catalog, encoder, self.writer, self.searcher)

    async def stop(self) -> None:
        """Stop everything, the last first."""
        for task in self._recalibrations:
            task.cancel()
        await asyncio.gather(*self._recalibrations, return_exceptions=True)
        await self._open.aclose()

    def _on_live(self, live: Live) -> None:
        """Take note of a search that was answered."""
        self.recent.observe(live.collection, live.query_D, live.slice)
        self.shadow.offer(live)
        self.comparison.offer(live)

    def _on_deleted(self, name: str) -> None:
        """Forget what was seen of a collection that is no longer there."""
        self.shadow.forget(name)

    def _on_alarm(self, collection: Collection) -> None:
        """Calibrate again, if that is wanted, as it was done before."""
        calibration = self.promises.calibration(collection)
        if not self._settings.recalibrate or calibration is None:
            return
        wanted = Calibrate(
            collection.name, calibration.limit, calibration.target, calibration.objective,
            calibration.confidence,
        )  # fmt: skip
        task = asyncio.create_task(self._recalibrate(wanted))
        self._recalibrations.add(task)
        task.add_done_callback(self._recalibrations.discard)

    async def _recalibrate(self, wanted: Calibrate) -> None:
        try:
            await self.calibrator.run(wanted, lambda *_: None)
        except ServiceError as error:
            log.warning("%s could not be calibrated again: %s", wanted.collection, error.message)


def _build_store(settings: RouterSettings, metrics: RouterMetrics) -> Store:
    if settings.qdrant_url is None:
        metrics.storage.labels("edge", "local").set(1)
        store = EdgeStore(
            settings.data_dir / "collections",
            settings.edge_queue,
            settings.edge_indexing_threshold_kb,
            settings.edge_start_timeout_s,
            metrics.worker_restarts.inc,
        )
        store.check_free()  # in vain would an encoder in this process load its models
        return store
    api_key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    retry = Retry(
        settings.qdrant_retry_s,
        settings.qdrant_timeout_s,
        lambda call: metrics.storage_retries.labels(call).inc(),
    )
    is_encrypted = settings.qdrant_url.startswith("https://")
    metrics.storage.labels("qdrant", "yes" if is_encrypted else "no").set(1)
    ca = TlsFiles(None, None, settings.qdrant_tls_ca).load(ssl.PROTOCOL_TLS_CLIENT).ca
    return QdrantStore.connect(
        settings.qdrant_url, settings.qdrant_grpc_port, api_key, settings.qdrant_timeout_s, retry,
        ca,
    )  # fmt: skip
