"""What the trainer is made of: built, started and closed in order."""

import asyncio
import contextlib
import logging
from pathlib import Path

from services.shared.blobs import Blobs
from services.shared.database import Database
from services.shared.files import Files
from services.shared.served import FILENAME
from services.trainer.jobs.create import Drafts
from services.trainer.jobs.intake import Intake
from services.trainer.jobs.jobs import Jobs
from services.trainer.jobs.kubernetes import Cluster, KubernetesLauncher
from services.trainer.jobs.launcher import Launcher, LocalLauncher
from services.trainer.jobs.leases import Leases
from services.trainer.jobs.manifest import PodKind
from services.trainer.jobs.name import hold_name
from services.trainer.jobs.placement import Placement, read_node_selector, read_tolerations
from services.trainer.jobs.queue import JobQueue
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.runner import Runner
from services.trainer.jobs.searches import Searches
from services.trainer.metrics import TrainerMetrics
from services.trainer.models.encoder_client import EncoderClient
from services.trainer.models.encoders import Encoders
from services.trainer.models.promoter import Promoter
from services.trainer.models.promotion import Promotions
from services.trainer.models.registry import Registry
from services.trainer.models.router_client import RouterClient
from services.trainer.models.served import ServedModels
from services.trainer.settings import TrainerSettings

log = logging.getLogger(__name__)

_SWEEP_S = 60.0
# Where Kubernetes mounts what a pod needs to call its API.
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Parts:
    """The trainer's objects; they are there once it has started.

    Args:
        settings: see there.
        metrics: of the trainer.
    """

    jobs: Jobs
    files: Files
    queue: JobQueue
    intake: Intake
    registry: Registry
    promotions: Promotions
    promoter: Promoter
    served: ServedModels

    def __init__(self, settings: TrainerSettings, metrics: TrainerMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._data_dir = settings.data_dir.absolute()
        self.folder = self._data_dir / "jobs"
        # Another service ends deletions where the files are its own.
        self.owns_files = settings.files_database_url is None
        self._open = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Open files and database and go on with the jobs of the last service."""
        s, metrics = self._settings, self._metrics
        self.folder.mkdir(parents=True, exist_ok=True)
        holding = hold_name(self._data_dir / "services")
        name = await asyncio.to_thread(holding.__enter__)
        self._open.push(holding)
        url = s.database_url
        jobs_url = url.get_secret_value() if url else f"sqlite:///{self._data_dir / 'jobs.sqlite'}"
        database = await asyncio.to_thread(self._database, jobs_url)
        files_url = s.files_database_url
        files_database = database
        if files_url is not None:
            files_database = await asyncio.to_thread(self._database, files_url.get_secret_value())
        place = s.files_url or str(self._data_dir / "files")
        blobs = await asyncio.to_thread(Blobs, place, s.max_file_bytes, f"trainer-{name}")
        await asyncio.to_thread(blobs.clean)
        self.files = Files(files_database, blobs)
        self.jobs = Jobs(database)
        leases = Leases(database, name, s.lease_s, s.max_jobs_per_owner)
        router = RouterClient(
            s.router_address, s.router_api_key, s.router_timeout_s, s.max_message_bytes, s.peer_tls
        )
        self._open.push_async_callback(router.close)
        searches = Searches(router, s.mining_searches, s.mining_patience_s)
        launcher = self._launcher()
        runner = Runner(
            leases, self.files, self.folder, searches, launcher, metrics, s.lease_s, s.disk_wait_s
        )
        self.queue = JobQueue(
            self.jobs, leases, runner, self.folder, metrics, s.max_concurrent_jobs
        )
        self._retention = Retention(self.folder, s.max_folders_bytes, metrics)
        self.intake = Intake(
            self.jobs, Drafts(self.files, self.folder, s), self.files, searches, self._retention,
            self.folder, metrics, s.max_queued_jobs, self.queue.kick,
        )  # fmt: skip
        self._open.callback(self.intake.close)
        await self._sweep()
        self._open.push_async_callback(self.queue.stop)
        await self.queue.start()
        await self._open_models(database, name, router)
        sweeping = asyncio.create_task(self._sweep_for_ever())
        self._open.push_async_callback(asyncio.wait, {sweeping})
        self._open.callback(sweeping.cancel)

    async def _open_models(self, database: Database, name: str, router: RouterClient) -> None:
        """Open versions and promotions, and go on with what the last service was at."""
        s = self._settings
        self.registry = Registry(database, self.jobs, self.folder)
        self.promotions = Promotions(database, name, s.lease_s)
        self.served = ServedModels(database, self._data_dir / FILENAME)
        await asyncio.to_thread(self.served.write)
        encoder = EncoderClient(
            s.encoder_address, s.encoder_api_key, s.encoder_timeout_s, s.peer_tls
        )
        self._open.push_async_callback(encoder.close)
        self.promoter = Promoter(
            self.promotions, self.registry, Encoders(encoder, self.served), router
        )
        self._open.push_async_callback(self.promoter.stop)
        await self.promoter.start()

    async def stop(self) -> None:
        """Stop everything, the last first."""
        await self._open.aclose()

    async def forget_file(self, file_id: str) -> None:
        """Free a deleted file's bytes, if that is for this service to do."""
        if self.owns_files:
            await self.files.remove(file_id)

    def _launcher(self) -> Launcher:
        s = self._settings
        if s.launcher == "local":
            return LocalLauncher(s.stop_s, 0.75 * s.lease_s, s.devices)
        token, certificates = (_ACCOUNT / name for name in ("token", "ca.crt"))
        cluster = Cluster(
            s.kubernetes_url,
            s.kubernetes_namespace,
            token if token.exists() else None,
            certificates if certificates.exists() else None,
        )
        self._open.push_async_callback(cluster.close)
        kind = PodKind(
            image=s.kubernetes_image or "",
            claim=s.kubernetes_claim or "",
            data_dir=self._data_dir,
            nodes=s.kubernetes_nodes,
            devices=s.devices,
            gpus=s.kubernetes_gpus,
            cpu=s.kubernetes_cpu,
            memory=s.kubernetes_memory,
            queue=s.kubernetes_queue or "",
            stop_s=s.stop_s,
            placement=Placement(
                node_selector=read_node_selector(s.kubernetes_node_selector),
                tolerations=read_tolerations(s.kubernetes_tolerations),
                runtime_class=s.kubernetes_runtime_class or "",
                priority_class=s.kubernetes_priority_class or "",
            ),
        )
        return KubernetesLauncher(cluster, kind)

    def _database(self, url: str) -> Database:
        database = Database(url)
        self._open.callback(database.close)
        database.open()
        return database

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self._sweep()
            except Exception as error:
                log.error("looking for what must go failed", exc_info=error)

    async def _sweep(self) -> None:
        """Bring the folders within their budget, and end deletions that were cut off."""
        states = await asyncio.to_thread(self.jobs.states)
        await asyncio.to_thread(self._retention.sweep, states)
        if self.owns_files:
            for file_id in await self.files.gone():
                await self.files.remove(file_id)
