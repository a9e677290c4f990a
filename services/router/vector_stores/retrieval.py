"""OpenAI's files and vector stores over the router's collections: each operation from call to end.

Also where what they need is built, started and closed. What a caller was told has happened survives
the death of the process; what it was not told is undone, or done, at the next start.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from services.router.attributes import Attributes
from services.router.catalog import Catalog
from services.router.encoder_client import EncoderClient
from services.router.hybrid.text_index import TextIndex
from services.router.metrics import RouterMetrics
from services.router.searcher import Searcher
from services.router.settings import RouterSettings
from services.router.upsert import Writer
from services.router.vector_stores.chunks import Chunking, auto_chunking
from services.router.vector_stores.files import StoreFiles
from services.router.vector_stores.ingest import Ingester
from services.router.vector_stores.reader import CannotRead, Reader
from services.router.vector_stores.rows import Attachment, FileBatch, StoreFile
from services.router.vector_stores.search import Answer, StoreSearcher, Wanted
from services.router.vector_stores.stores import VectorStore, VectorStores
from services.router.vector_stores.work import StoreWork
from services.shared.blobs import Blobs
from services.shared.database import Database
from services.shared.errors import InvalidRequest, ModelNotFound, NotFound, ServiceError, WrongState
from services.shared.files import Files

log = logging.getLogger(__name__)


class Retrieval:
    """Vector stores and uploaded files. `start` comes before anything else.

    Args:
        settings: the router's.
        metrics: the router's.
        database: of stores and files, open from `start` to the end.
    """

    def __init__(
        self, settings: RouterSettings, metrics: RouterMetrics, database: Database
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        language = settings.vector_store_language
        self._text_index = TextIndex(language) if language else None
        self._database = database
        self.stores = VectorStores(self._database)
        self.store_files = StoreFiles(self._database)
        self._content = asyncio.Lock()
        self._running = contextlib.AsyncExitStack()

    async def start(
        self, catalog: Catalog, encoder: EncoderClient, writer: Writer, searcher: Searcher
    ) -> None:
        """Begin, with what was left undone."""
        s = self._settings
        self._catalog, self._encoder = catalog, encoder
        self._name = await asyncio.to_thread(_read_name, s.data_dir)
        self._work = StoreWork(self._database, self._name, s.ingest_lease_s)
        self.files = await asyncio.to_thread(self._open)
        self._searcher = StoreSearcher(searcher, self.store_files, self.files, s.max_text_chars)
        self._ingester = Ingester(
            self.stores,
            self._work,
            self.files,
            writer,
            [self._reader() for _ in range(s.ingest_concurrency)],
            s.data_dir / "reading",
            min(s.encoder_batch_texts, s.max_batch_points),
            s.max_document_bytes,
            s.ingest_retry_s,
            s.ingest_lease_s,
            self._metrics,
        )
        self._content_reader = self._reader()
        self._running.push_async_callback(self._content_reader.close)
        await asyncio.to_thread(self.stores.give_up, self._name)
        self._running.push_async_callback(self._ingester.stop)
        await self._ingester.start()
        sweeping = asyncio.create_task(self._sweep_for_ever())
        self._running.push_async_callback(asyncio.wait, {sweeping})
        self._running.callback(sweeping.cancel)

    def _open(self) -> Files:
        s = self._settings
        blobs = Blobs(s.files_place, s.max_file_bytes, self._name)
        blobs.clean()
        return Files(self._database, blobs)

    def _reader(self) -> Reader:
        s = self._settings
        return Reader(s.read_timeout_s, s.read_memory_bytes, s.max_pages, s.max_document_tokens)

    async def stop(self) -> None:
        """End; what is not done is done after the next start."""
        await self._running.aclose()

    async def create_store(
        self,
        store: VectorStore,
        file_ids: Sequence[str],
        chunking: Chunking | None,
    ) -> VectorStore:
        """Create a store and put files into it.

        Args:
            store: what the caller says of it; `model` may be an alias.
            file_ids: of uploaded files.
            chunking: how these are cut; None: as suits the model.

        Raises:
            NotFound: the encoder does not serve the model, or there is no such file.
        """
        try:
            model = await self._encoder.get_model(store.model)
        except NotFound as error:
            raise ModelNotFound(error.message, "model") from error
        await self.files.get_all(file_ids, store.tenant, "file_ids")
        await asyncio.to_thread(self.stores.add, store, self._name)
        try:
            described = await self._catalog.create(
                store.collection, model.id, (), store.tenant, self._text_index
            )
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self.stores.set_state, store.id, "deleting"))
            raise
        created, auto = described.collection, auto_chunking(model.max_tokens)
        opened = (store.id, created.model, created.full, auto.max_tokens)
        await asyncio.to_thread(self.stores.open, *opened)
        attachments = [Attachment(id_, {}, chunking or auto) for id_ in file_ids]
        if attachments:
            await asyncio.to_thread(self.store_files.attach, store.id, attachments)
            self._ingester.kick()
        return await asyncio.to_thread(self.stores.get, store.id, store.tenant)

    async def delete_store(self, store_id: str, tenant: str | None) -> None:
        """Delete a store, its files' chunks and their attributes; the files stay. NotFound."""
        store = await asyncio.to_thread(self.stores.get, store_id, tenant)
        await asyncio.to_thread(self.stores.set_state, store_id, "deleting")
        try:
            await self._drop(store)
        except ServiceError as error:
            log.warning("%s is deleted later: %s", store_id, error)

    async def search(self, store_id: str, wanted: Wanted, tenant: str | None) -> Answer:
        """Search a store; NotFound, WrongState when it has expired."""
        store = await asyncio.to_thread(self.stores.use, store_id, tenant)
        return await self._searcher.search(store, wanted)

    async def attach(
        self,
        store_id: str,
        files: Sequence[tuple[str, Attributes, Chunking | None]],
        tenant: str | None,
    ) -> list[StoreFile]:
        """Put files into a store, each with its attributes and how it is cut.

        Raises:
            NotFound: no such store or file; a tenant's store takes no other's files.
            WrongState: the store has expired.
        """
        attachments = await self._attachments(store_id, files, tenant)
        attached = await asyncio.to_thread(self.store_files.attach, store_id, attachments)
        self._ingester.kick()
        return attached

    async def attach_batch(
        self,
        store_id: str,
        files: Sequence[tuple[str, Attributes, Chunking | None]],
        tenant: str | None,
    ) -> FileBatch:
        """Put files into a store together; see `attach`."""
        attachments = await self._attachments(store_id, files, tenant)
        batch = await asyncio.to_thread(self.store_files.attach_batch, store_id, attachments)
        self._ingester.kick()
        return batch

    async def _attachments(
        self,
        store_id: str,
        files: Sequence[tuple[str, Attributes, Chunking | None]],
        tenant: str | None,
    ) -> list[Attachment]:
        store = await asyncio.to_thread(self.stores.use, store_id, tenant)
        # The last of those that are named twice.
        by_id = {file_id: (attributes, chunking) for file_id, attributes, chunking in files}
        await self.files.get_all(list(by_id), store.tenant, "file_id")
        auto = Chunking(store.auto_tokens, store.auto_tokens // 2)
        return [
            Attachment(file_id, attributes, chunking or auto)
            for file_id, (attributes, chunking) in by_id.items()
        ]

    async def set_attributes(
        self, store_id: str, file_id: str, attributes: Attributes, tenant: str | None
    ) -> StoreFile:
        """Give a file of a store other attributes; searches filter by them shortly. NotFound."""
        await asyncio.to_thread(self.stores.use, store_id, tenant)
        file = await asyncio.to_thread(
            self.store_files.set_attributes, store_id, file_id, attributes
        )
        self._ingester.kick()
        return file

    async def detach(self, store_id: str, file_id: str, tenant: str | None) -> None:
        """Take a file out of a store; NotFound."""
        await asyncio.to_thread(self.stores.get, store_id, tenant)
        file = await asyncio.to_thread(self.store_files.hide, store_id, file_id)
        await self._ingester.remove(file)

    async def cancel_batch(self, store_id: str, batch_id: str, tenant: str | None) -> FileBatch:
        """Stop what is in progress of a batch; its chunks are taken out. NotFound."""
        await asyncio.to_thread(self.stores.get, store_id, tenant)
        batch, numbers = await asyncio.to_thread(self.store_files.cancel_batch, store_id, batch_id)
        await self._ingester.interrupt(numbers)
        self._ingester.kick()
        return batch

    async def content(self, store_id: str, file_id: str, tenant: str | None) -> list[str]:
        """Return the text of a file of a store, in its parts: pages of a PDF, or one.

        Raises:
            NotFound: no such store or file.
            WrongState: it is not in the store yet.
        """
        await asyncio.to_thread(self.stores.get, store_id, tenant)
        file = await asyncio.to_thread(self.store_files.get, store_id, file_id)
        if file.state != "completed":
            raise WrongState(
                f"the text is there when the file is completed; it is {file.state}", "file_id"
            )
        uploaded = await self.files.get(file_id, tenant)
        path: Path = self._settings.data_dir / "reading" / f"content-{uuid.uuid4().hex}"
        async with self._content:
            try:
                await self.files.fetch(file_id, path)
                read = self._content_reader.read(path, uploaded.filename, None)
                async with contextlib.aclosing(read) as parts:
                    return [part async for some in parts for part in some]
            except CannotRead as error:
                raise InvalidRequest(error.message, "file_id") from error
            finally:
                path.unlink(missing_ok=True)  # noqa: ASYNC240 (as quick as asking a thread)

    async def forget_file(self, file_id: str) -> None:
        """Take a file that is deleted out of every store."""
        for file in await asyncio.to_thread(self.store_files.hide_everywhere, file_id):
            await self._ingester.remove(file)

    async def _drop(self, store: VectorStore) -> None:
        await self._ingester.interrupt(await asyncio.to_thread(self._work.numbers, store.id))
        with contextlib.suppress(NotFound):
            await self._catalog.delete(store.collection)
        await asyncio.to_thread(self._work.remove_all, store.id)
        await asyncio.to_thread(self.stores.remove, store.id)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._sweep()
            except Exception as error:
                log.error("looking for what has expired failed", exc_info=error)
            await asyncio.sleep(self._settings.sweep_s)

    async def _sweep(self) -> None:
        """End deletions that were cut off, and what has expired."""
        for store in await asyncio.to_thread(self.stores.in_state, "deleting"):
            await self._drop(store)
        for store in await asyncio.to_thread(self.stores.overdue):
            await asyncio.to_thread(self._work.empty, store.id)
            await self._ingester.interrupt(await asyncio.to_thread(self._work.numbers, store.id))
            with contextlib.suppress(NotFound):
                await self._catalog.delete(store.collection)
            await asyncio.to_thread(self.stores.set_state, store.id, "expired")
            log.info("%s has expired", store.id)
        for file_id in await self.files.gone():
            await self.forget_file(file_id)
            await self.files.remove(file_id)


def _read_name(folder: Path) -> str:
    """Return the name of the router with this data folder: the same after a restart, no other's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "router-name"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(uuid.uuid4().hex)
        temporary.replace(path)
    return path.read_text()
