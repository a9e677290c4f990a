"""Brings a version into service, step by step: judge, load, fill, switch; and back again.

Every step can be done twice, so a promotion whose trainer was killed goes on with the step that it
was at. What is served before is served until the switch, and until `finish` there is a way back.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from services.shared.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    TookTooLong,
    Unavailable,
    WrongState,
)
from services.shared.trace import Place, below, place, span
from services.trainer.models.encoders import Encoders
from services.trainer.models.promotion import (
    WORKING,
    Promotion,
    Promotions,
    State,
    Target,
    new_id,
)
from services.trainer.models.registry import Registry, Version
from services.trainer.models.router_client import RouterClient
from services.trainer.results.gate import Rule, Verdict, judge

log = logging.getLogger(__name__)

_POLL_S = 0.25
_PATIENCE_S = 600.0
"""Longest that a step waits for a peer that is away, before it is given up."""
_AWAY = (Unavailable, Overloaded, TookTooLong)
_WAITING = ("ready", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A promotion as the caller asks for it."""

    version: str
    """Id or alias."""
    encoder_alias: str
    collections: tuple[str, ...]
    """The router's aliases."""
    rule: Rule
    holds: bool
    watches: bool


class Promoter:
    """Does promotions, one after another.

    Args:
        promotions: where they are noted.
        registry: knows the versions.
        encoders: load them.
        router: fills collections.
    """

    def __init__(
        self,
        promotions: Promotions,
        registry: Registry,
        encoders: Encoders,
        router: RouterClient,
    ) -> None:
        self._promotions = promotions
        self._registry = registry
        self._encoders = encoders
        self._router = router
        self._wake = asyncio.Event()
        # Of the call that moved each on last, in this service; another one's are not traced.
        self._places: dict[str, Place | None] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what the last service left."""
        self._wake.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def begin(self, wanted: Wanted) -> Promotion:
        """Note a promotion, or find the one that is under way and does the same.

        Raises:
            NotFound: there is no such version, or no such collection.
            InvalidRequest: nothing is to be promoted, or a collection is not named by an alias.
            WrongState: another promotion has to do with the same names.
            Unavailable: the router cannot be reached.
        """
        if not wanted.encoder_alias and not wanted.collections:
            raise InvalidRequest(
                "a promotion must name an encoder_alias, collections, or both", "collections"
            )
        version = await asyncio.to_thread(self._registry.get, wanted.version)
        short = version.id.rpartition(":")[2]
        targets = [await self._target(alias, short) for alias in dict.fromkeys(wanted.collections)]
        now = time.time()
        promotion = Promotion(
            id=new_id(),
            version_id=version.id,
            encoder_alias=wanted.encoder_alias,
            targets=tuple(targets),
            rule=wanted.rule,
            holds=wanted.holds,
            watches=wanted.watches,
            created_at=now,
            updated_at=now,
        )
        added = await asyncio.to_thread(self._promotions.add, promotion)
        self._places.setdefault(added.id, place())
        self._wake.set()
        return added

    async def watch(self, promotion_id: str) -> AsyncIterator[Promotion]:
        """Yield a promotion as it changes, until it has ended or waits for somebody."""
        last: Promotion | None = None
        while True:
            found = await asyncio.to_thread(self._promotions.get, promotion_id)
            if last is None or found.updated_at != last.updated_at:
                yield found
                last = found
            if found.state not in WORKING:
                return
            await asyncio.sleep(_POLL_S)

    async def cut_over(self, promotion_id: str) -> Promotion:
        """Switch a promotion that waits for it; WrongState, if it does not."""
        return await self._move(promotion_id, ("ready",), "switching")

    async def roll_back(self, promotion_id: str) -> Promotion:
        """Give up what has not switched, or switch back; WrongState, if there is no way back."""
        ways: tuple[State, ...] = ("checking", "loading", "migrating", "ready", "watching")
        return await self._move(promotion_id, ways, "rolling_back")

    async def finish(self, promotion_id: str) -> Promotion:
        """End a promotion that is watched; WrongState, if it is not."""
        promotion = await asyncio.to_thread(self._promotions.get, promotion_id)
        _expect(promotion, ("watching",))
        await self._part(promotion)
        return await self._note(promotion, state="done", step="")

    async def _move(self, promotion_id: str, before: tuple[State, ...], state: State) -> Promotion:
        _expect(await asyncio.to_thread(self._promotions.get, promotion_id), before)
        self._places[promotion_id] = place()
        promotion = await asyncio.to_thread(
            self._promotions.update, promotion_id, before, state=state
        )
        self._wake.set()
        while promotion.state in WORKING:
            await asyncio.sleep(_POLL_S)
            promotion = await asyncio.to_thread(self._promotions.get, promotion_id)
        return promotion

    async def _target(self, alias: str, short: str) -> Target:
        found = await self._router.find(alias)
        if found is None:
            raise NotFound(f"the router has no collection {alias[:128]!r}", "collections")
        if alias not in found.aliases:
            known = ", ".join(found.aliases) or "none; SetCollectionAlias gives it one"
            raise InvalidRequest(
                f"collections must be named by aliases, which can be switched; {alias!r} is a "
                f"collection's own name, and its aliases are: {known}",
                "collections",
            )
        return Target(alias=alias, target=f"{alias}-{short}")

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # What another service has left is seen in the end, too.
                await asyncio.wait_for(self._wake.wait(), self._promotions.lease_s)
            self._wake.clear()
            while promotion := await asyncio.to_thread(self._promotions.claim):
                advancing = asyncio.create_task(self._advance(promotion))
                try:
                    await self._hold(promotion.id, advancing)
                finally:
                    advancing.cancel()
                    await asyncio.wait({advancing})

    async def _hold(self, promotion_id: str, advancing: asyncio.Task[None]) -> None:
        """Say that this service is at it until it is done; return early if another one is."""
        while not advancing.done():
            await asyncio.wait({advancing}, timeout=self._promotions.lease_s / 3)
            if not await asyncio.to_thread(self._promotions.renew, promotion_id):
                return

    async def _advance(self, promotion: Promotion) -> None:
        """Take a promotion as far as it goes without being asked."""
        steps: dict[str, Callable[[Promotion], Awaitable[Promotion]]] = {
            "checking": self._check,
            "loading": self._load,
            "migrating": self._migrate,
            "switching": self._switch,
            "rolling_back": self._back,
        }
        away_since = 0.0
        while promotion.state in WORKING:
            try:
                with below(self._places.get(promotion.id)), span(promotion.state):
                    promotion = await steps[promotion.state](promotion)
                away_since = 0.0
            except _AWAY as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since < _PATIENCE_S:
                    promotion = await self._note(promotion, error=error.message)
                    await asyncio.sleep(error.retry_after_s or 1)
                else:
                    promotion = await self._fail(promotion, error.message)
            except ServiceError as error:
                promotion = await self._fail(promotion, error.message)
            except Exception as error:  # a bug of ours ends this promotion, not the next one
                log.exception("promotion %s could not go on", promotion.id)
                promotion = await self._fail(promotion, f"internal error ({type(error).__name__})")

    async def _check(self, promotion: Promotion) -> Promotion:
        """Judge it against every model that it would replace; if there is none, its base."""
        version = await asyncio.to_thread(self._registry.get, promotion.version_id)
        named: list[str] = []
        if promotion.encoder_alias:
            named = await self._encoders.models_of(promotion.encoder_alias)
        found = [await self._router.find(target.alias) for target in promotion.targets]
        live = dict.fromkeys([*named, *(one.model for one in found if one is not None)])
        replaced = [model for model in live if model not in ("", version.id)]
        previous = next((model for model in named if model != version.id), "")
        verdicts = [
            await asyncio.to_thread(self._judge, version, model, promotion.rule)
            for model in replaced or [version.base_model]
        ]
        reasons = tuple(reason for verdict in verdicts for reason in verdict.reasons)
        return await self._note(
            promotion,
            state="refused" if reasons else "loading",
            reasons=reasons,
            judged=verdicts[0].judged,
            previous=previous or promotion.previous,
            error="",
        )

    def _judge(self, version: Version, live: str, rule: Rule) -> Verdict:
        try:
            before_QKS, after_QKS, dims = self._registry.paired_scores(live, version)
        except (NotFound, WrongState) as error:
            reason = f"what is live, {live!r}, cannot be compared: {error.message}"
            return Verdict(reasons=(reason,), judged=())
        if not rule.dims:  # what was only measured is not what is served
            served = tuple(dim for dim in version.hyperparameters.dims if dim in dims)
            rule = rule.model_copy(update={"dims": served})
        return judge(before_QKS, after_QKS, self._registry.slices(version), dims, rule)

    async def _load(self, promotion: Promotion) -> Promotion:
        version = await asyncio.to_thread(self._registry.get, promotion.version_id)
        if not promotion.loads and not await self._encoders.models_of(version.id):
            promotion = await self._note(promotion, loads=True)
            if promotion.state != "loading":  # somebody has given it up meanwhile
                return promotion
        await self._load_everywhere(version)
        return await self._note(promotion, state="migrating", error="")

    async def _load_everywhere(self, version: Version) -> None:
        folder = self._registry.model_dir(version.job_id)
        await self._encoders.load(folder, version.id, version.space_id)

    async def _migrate(self, promotion: Promotion) -> Promotion:
        for target in promotion.targets:
            await self._fill(promotion, target)
        state = "ready" if promotion.holds else "switching"
        return await self._note(promotion, state=state, step="", error="")

    async def _fill(self, promotion: Promotion, target: Target) -> None:
        """Wait until a target is ready, and have it made if it is not there."""
        while promotion.state == "migrating":
            found = await self._router.find(target.target)
            if found is None:
                await self._router.migrate(
                    target.alias, target.target, promotion.version_id, promotion.watches
                )
                continue
            if found.model != promotion.version_id:
                raise WrongState(
                    f"the router has a collection {target.target!r} of another model; delete it"
                )
            if found.error:
                raise WrongState(f"collection {target.target}: {found.error}")
            if found.step in _WAITING or target.alias in found.aliases:
                return
            if not found.step:
                raise WrongState(f"collection {target.target!r} is not being filled any more")
            step = f"{target.alias}: {found.step}"
            if found.total:
                step += f" {found.done:,} of {found.total:,}"
            promotion = await self._note(
                promotion, step=step, done=found.done, total=found.total, error=""
            )
            await asyncio.sleep(_POLL_S)

    async def _switch(self, promotion: Promotion) -> Promotion:
        version = await asyncio.to_thread(self._registry.get, promotion.version_id)
        await self._load_everywhere(version)  # collections may have taken hours to fill
        for target in promotion.targets:
            found = await self._router.find(target.target)
            if found is not None and found.step == "ready":
                await self._router.cut_over(target.target)
        if promotion.encoder_alias:
            await self._encoders.point(promotion.encoder_alias, promotion.version_id)
        if promotion.watches:
            return await self._note(promotion, state="watching", error="")
        await self._part(promotion)
        return await self._note(promotion, state="done", error="")

    async def _part(self, promotion: Promotion) -> None:
        for target in promotion.targets:
            found = await self._router.find(target.target)
            if found is not None and found.step == "watch":
                await self._router.finish(target.target)

    async def _back(self, promotion: Promotion) -> Promotion:
        await self._restore(promotion)
        await self._unload(promotion)
        return await self._note(promotion, state="rolled_back", step="", error="")

    async def _restore(self, promotion: Promotion) -> None:
        """Have everything served as before; what was filled is deleted."""
        for target in promotion.targets:
            found = await self._router.find(target.target)
            if found is not None and found.step == "watch":
                await self._router.roll_back(target.target)
            if found is not None and (found.step or found.error):
                await self._router.give_up(target.target)
        alias, before = promotion.encoder_alias, promotion.previous
        if alias and before and await self._encoders.points_at(alias, promotion.version_id):
            await self._encoders.point(alias, before)

    async def _unload(self, promotion: Promotion) -> None:
        """Free the encoder of what was loaded for nothing, if nobody has come to use it."""
        version_id = promotion.version_id
        others = await asyncio.to_thread(self._promotions.is_served, version_id, promotion.id)
        if not promotion.loads or others:
            return
        try:
            if not await self._router.uses(version_id):
                await self._encoders.unload(version_id)
        except ServiceError as error:  # it takes memory, and harms nobody
            log.warning("%s stays loaded in the encoder: %s", version_id, error.message)

    async def _fail(self, promotion: Promotion, message: str) -> Promotion:
        """Give a promotion up, with what is served as before."""
        try:
            await self._restore(promotion)
            await self._unload(promotion)
        except ServiceError as error:
            message += f"; what was filled could not be removed: {error.message}"
        return await self._note(promotion, state="failed", error=message)

    async def _note(self, promotion: Promotion, **values: object) -> Promotion:
        """Note what was done, unless somebody has moved the promotion on meanwhile."""
        return await asyncio.to_thread(
            self._promotions.update, promotion.id, (promotion.state,), **values
        )


def _expect(promotion: Promotion, states: tuple[State, ...]) -> None:
    if promotion.state not in states:
        raise WrongState(
            f"promotion {promotion.id} is {promotion.said}; this is for one that is {_or(states)}"
        )


def _or(states: tuple[State, ...]) -> str:
    return " or ".join(state.replace("_", " ") for state in states)
