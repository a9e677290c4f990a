"""Other sizes for a collection, nested ones too: learn a rotation, build, calibrate."""

import contextlib
import logging
from collections.abc import Sequence

from services.router.changes.change import Calibrated, Change, size_rows
from services.router.changes.running import Keep, Running
from services.router.changes.sample import Sampler
from services.router.hybrid.text_index import TextIndex, check_text_index
from services.router.recall.calibrate import Calibrate, Calibrator
from services.router.rotation import Rotation
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.store import Collection, Store
from services.router.trainer_client import TrainerClient
from services.shared.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
    WrongState,
)

log = logging.getLogger(__name__)

# What nested sizes are made of where the caller names none: parts of the full width that keep
# most of it (see `bench/nest.py`), in codes of four bits.
_NESTED_PARTS = (6, 4)
_NESTED_STEP = 8
_SHORTEST_NESTED, _LONGEST_NESTED = 16, 256


class SizeWork:
    """Changes sizes.

    Args:
        store: where the collections are.
        calibrator: measures a collection anew in the end.
        sampler: hands vectors to the trainer.
        trainer: learns rotations.
    """

    def __init__(
        self, store: Store, calibrator: Calibrator, sampler: Sampler, trainer: TrainerClient
    ) -> None:
        self._store = store
        self._calibrator = calibrator
        self._sampler = sampler
        self._trainer = trainer

    async def resize(
        self, name: str, requests: Sequence[SizeRequest], text_index: TextIndex | None
    ) -> tuple[Collection, Change]:
        """Return the change that gives a collection other sizes, or a text index, or both.

        Args:
            name: of the collection, or an alias.
            requests: all sizes that it shall have; empty, beside a text index: those it has.
            text_index: that it shall have; None: as it is.

        Raises:
            InvalidRequest: a size or the language is out of bounds.
        """
        collection = await self._store.find(name)
        if text_index is not None:
            check_text_index(text_index)
            requests = requests or [size.request() for size in collection.sizes]
        if not requests:
            raise InvalidRequest(
                "sizes must name what the collection shall have, or text_index how its texts are "
                "searched by words",
                "sizes",
            )
        sizes = resolve_sizes(requests, collection.full, nesting=collection.nesting)
        calibrated = Calibrated.of(collection) if sizes != collection.sizes else None
        return collection, Change(
            kind="resize",
            step="build",
            sizes=size_rows(requests),
            language=text_index.language if text_index else "",
            calibrated=calibrated,
        )

    async def nest(
        self, name: str, requests: Sequence[SizeRequest], calibrated: Calibrated | None
    ) -> tuple[Collection, Change]:
        """Return the change that learns a rotation from a collection and adds nested sizes.

        Args:
            name: of the collection, or an alias.
            requests: the nested sizes, besides those that the collection has; empty: a sixth and a
                quarter of the full width, in codes of four bits.
            calibrated: how to measure it in the end; None: as it was, or by default.

        Raises:
            InvalidRequest: a size or a number is out of bounds.
            WrongState: the collection has too few points to learn from.
        """
        collection = await self._store.find(name)
        nested = list(requests) or _default_nested(collection.full)
        if not all(request.is_nested for request in nested):
            raise InvalidRequest(
                "sizes must be nested ones; those that the collection has stay", "sizes"
            )
        plain = [size.request() for size in collection.sizes if not size.is_nested]
        wanted = [*plain, *nested]
        resolve_sizes(wanted, collection.full, nesting="to be learned")
        calibrated = calibrated or Calibrated.of(collection) or Calibrated()
        self._calibrator.check(to_calibrate(collection.name, calibrated))
        await self._sampler.check(collection)
        return collection, Change(
            kind="nest", step="sample", sizes=size_rows(wanted), calibrated=calibrated
        )

    async def do(self, name: str, running: Running, keep: Keep) -> bool:
        change = running.change
        collection = await self._store.find(name)
        rotation = await self._learn(collection, running, keep) if change.kind == "nest" else None
        nesting = rotation.id if rotation else collection.nesting
        sizes = resolve_sizes(change.requests(), collection.full, nesting=nesting)
        text_index = TextIndex(change.language) if change.language else None
        if (sizes, text_index or collection.text_index) != (
            collection.sizes,
            collection.text_index,
        ):
            await keep(step="build")
            is_new = rotation is not None and nesting != collection.nesting
            await self._store.resize(
                name, sizes, rotation if is_new else None,
                lambda done, total: running.tell("build", done, total),
                text_index,
            )  # fmt: skip
        if change.calibrated is not None:
            await keep(step="calibrate")
            await self._calibrator.run(
                to_calibrate(name, change.calibrated),
                lambda step, done, total: running.tell(f"calibrate: {step}", done, total),
            )
        return True

    async def undo(self, name: str, change: Change) -> None:
        with contextlib.suppress(ServiceError):
            if change.job_id:
                await self._trainer.cancel(change.job_id)
            await self._delete(change.samples)

    async def _learn(self, collection: Collection, running: Running, keep: Keep) -> Rotation:
        dims = sorted(size.dim for size in running.change.sizes if size.is_nested)
        try:
            if not running.change.job_id:
                await self._begin(collection, running, keep, dims)
            # The job has copies.
            await self._delete(running.change.samples)
            await keep(samples=())
            learned = await self._trainer.wait(
                running.change.job_id, lambda done, total: running.tell("learn", done, total)
            )
        except NotFound as error:  # of the trainer's; the collection is there
            raise WrongState(f"the trainer has lost its work: {error.message}") from error
        running.quality = learned.quality
        if learned.rotation_DD.shape[1] != collection.full:
            raise ServiceError("the trainer's rotation is of another width than the collection")
        return Rotation.of(learned.rotation_DD[: dims[-1]].copy())

    async def _begin(
        self, collection: Collection, running: Running, keep: Keep, dims: Sequence[int]
    ) -> None:
        """Hand vectors over and queue the job; what is uploaded is noted, so that it goes again."""
        if not running.change.samples:
            documents = await self._sampler.hand_over(
                collection, lambda done, total: running.tell("sample", done, total)
            )
            await keep(samples=(documents,))
        if len(running.change.samples) == 1:
            queries = await self._sampler.hand_over_queries(collection)
            await keep(samples=(*running.change.samples, queries))
        try:
            documents, queries = running.change.samples
            job_id = await self._trainer.nest(running.change.id, documents, queries, dims)
        except (Unavailable, Overloaded, TookTooLong):
            raise  # it is asked again
        except ServiceError:
            await self._delete(running.change.samples)
            raise
        await keep(step="learn", job_id=job_id)

    async def _delete(self, files: Sequence[str]) -> None:
        """Delete files at the trainer; one that knows no way to do so keeps them."""
        for file_id in filter(None, files):
            try:
                await self._trainer.delete(file_id)
            except (Unavailable, Overloaded, TookTooLong):
                raise
            except ServiceError as error:
                log.warning("%s stays at the trainer: %s", file_id, error.message)


def to_calibrate(name: str, calibrated: Calibrated) -> Calibrate:
    """Return the request that measures a collection in the end."""
    return Calibrate(
        name, calibrated.limit, calibrated.target, calibrated.objective, calibrated.confidence
    )


def _default_nested(full: int) -> list[SizeRequest]:
    dims = {
        min(max(full // part // _NESTED_STEP * _NESTED_STEP, _SHORTEST_NESTED), _LONGEST_NESTED)
        for part in _NESTED_PARTS
    }
    return [SizeRequest(dim, "turbo4", is_nested=True) for dim in sorted(dims) if dim < full]
