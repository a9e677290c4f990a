"""Migrations from their beginning to their end: copy, calibrate, switch; and back again."""

import asyncio
from dataclasses import replace

from services.router.changes.agreements import Agreements
from services.router.changes.change import Calibrated, Change, read_change
from services.router.changes.changes import Changes
from services.router.changes.migrate import Migrate, Migrator
from services.router.changes.running import Keep, Running
from services.router.changes.sizes import to_calibrate
from services.router.recall.calibrate import Calibrator
from services.router.storage.store import Collection, Store
from services.shared.errors import InvalidRequest, NotFound, WrongState

_NEXT = {
    "ready": "MigrateCollection with `hold` leads there, or RollBack",
    "watch": "MigrateCollection with `watch` leads there, or CutOver; CancelChange gives it up",
}
"""How a target comes to a step, for those who call too early."""


class MigrateWork:
    """Migrates collections.

    Args:
        store: where they are.
        calibrator: measures the target.
        migrator: does the steps.
        agreements: what live searches have shown of those that wait.
    """

    def __init__(
        self, store: Store, calibrator: Calibrator, migrator: Migrator, agreements: Agreements
    ) -> None:
        self._store = store
        self._calibrator = calibrator
        self._migrator = migrator
        self._agreements = agreements

    async def begin(self, wanted: Migrate, changes: Changes) -> Running:
        """Create the target and begin to fill it; see `Migrator.prepare` for what is refused."""
        if (wanted.holds or wanted.keeps_source) and not wanted.alias:
            raise InvalidRequest("without an alias there is no switch to hold, or to undo", "alias")
        source, target = await self._migrator.prepare(wanted)
        change = Change(
            kind="migrate", step="copy", calibrated=Calibrated.of(source), source=source.name,
            alias=wanted.alias, holds=wanted.holds, keeps_source=wanted.keeps_source,
        )  # fmt: skip
        # With its change from the beginning: a router that ends here leaves work, and no riddle.
        await self._store.create(replace(target, change=change.model_dump(mode="json")))
        return await changes.begin(target, change)

    async def do(self, name: str, running: Running, keep: Keep) -> bool:
        await self._migrator.mirror(await self._store.find(running.change.source), name)
        await self._copy(name, running, keep)
        await self._migrator.carry_queries(running.change, await self._store.find(name))
        if running.change.calibrated is not None:
            await keep(step="calibrate")
            await self._calibrate(name, running, running.change.calibrated)
        if running.change.holds:
            await keep(step="ready")
            return False
        return await self._switch(name, running.change, keep)

    async def undo(self, name: str, change: Change) -> None:
        await self._migrator.part(change.source)
        if name not in (await self._store.aliases()).values():
            await self._store.drop(name)
        await asyncio.to_thread(self._agreements.forget, change.id)

    async def cut_over(self, name: str) -> None:
        """Switch to a target that is ready; WrongState, if it is not."""
        collection, change = await self._waiting(name, "ready")
        await self._migrator.cut_over(change, collection.name)
        await self._note(collection, change, "watch" if change.keeps_source else None)

    async def roll_back(self, name: str) -> None:
        """Switch back to the source, which was kept current; the target waits, kept current."""
        collection, change = await self._waiting(name, "watch")
        await self._migrator.roll_back(change, collection.name)
        await self._note(collection, change, "ready")

    async def finish(self, name: str) -> None:
        """Let the two part; the source stays as it is then, for its owner to delete."""
        collection, change = await self._waiting(name, "watch")
        await self._migrator.part(collection.name)
        await self._note(collection, change, None)

    async def _copy(self, name: str, running: Running, keep: Keep) -> None:
        while not running.change.is_copied:
            change = running.change
            target = await self._store.find(name)
            total = await self._store.count(change.source)
            running.tell("copy", change.num_copied, max(total, change.num_copied))
            page = await self._migrator.copy(change, target)
            copied = change.num_copied + len(page.points)
            await keep(after=page.after, num_copied=copied, is_copied=page.after is None)
            running.tell("copy", copied, max(total, copied))
        await self._migrator.settle(running.change, await self._store.find(name))

    async def _calibrate(self, name: str, running: Running, calibrated: Calibrated) -> None:
        await self._calibrator.run(
            to_calibrate(name, calibrated),
            lambda step, done, total: running.tell(f"calibrate: {step}", done, total),
        )

    async def _switch(self, name: str, change: Change, keep: Keep) -> bool:
        await self._migrator.cut_over(change, name)
        if change.keeps_source:
            await keep(step="watch")
            return False
        await self._migrator.part(change.source, name)
        return True

    async def _waiting(self, name: str, step: str) -> tuple[Collection, Change]:
        collection = await self._store.find(name)
        change = read_change(collection)
        if change is None or change.step != step or change.error:
            now = f"its step is {change.step!r}" if change is not None else "it is none"
            raise WrongState(
                f"collection {collection.name!r} must be the target of a migration whose step is "
                f"{step!r}, and {now}; {_NEXT[step]}"
            )
        try:
            await self._store.find(change.source)
        except NotFound as error:
            raise WrongState(f"the migration's source {change.source!r} is gone") from error
        return collection, change

    async def _note(self, collection: Collection, change: Change, step: str | None) -> None:
        kept = change.model_copy(update={"step": step}).model_dump(mode="json") if step else None
        await self._store.annotate(collection.name, "change", kept)
        if kept is None:
            await asyncio.to_thread(self._agreements.forget, change.id)
