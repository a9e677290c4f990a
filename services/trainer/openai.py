"""OpenAI's `/v1/fine_tuning/jobs`, as HTTP routes.

Source: openai/openai-openapi, the paths of the same names. Beyond them: the method `matryoshka`,
the state `paused`, and the header `Idempotency-Key`.
"""

import asyncio
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.shared.auth import caller
from services.shared.errors import InvalidRequest, WrongState
from services.shared.http import parse_json, read_body
from services.shared.paging import Paging, read_paging, write_page
from services.trainer.jobs.events import read_newest
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import CHECKPOINTS
from services.trainer.openai_answer import (
    checkpoint_step,
    event_number,
    use_openais_words,
    write_checkpoint,
    write_event,
    write_fine_tuning,
)
from services.trainer.openai_body import read_create, read_filter
from services.trainer.parts import Parts
from services.trainer.training.checkpoint import saved

_JOBS, _JOB = "/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs/{fine_tuning_job_id}"
OPEN_TO_TENANTS = frozenset(
    {
        f"POST {_JOBS}",
        f"GET {_JOBS}",
        f"GET {_JOB}",
        f"POST {_JOB}/cancel",
        f"POST {_JOB}/pause",
        f"POST {_JOB}/resume",
        f"GET {_JOB}/events",
        f"GET {_JOB}/checkpoints",
    }
)
"""Each asks `caller()` whose jobs it may touch."""


class FineTuningHttp:
    """The routes.

    Args:
        parts: of the trainer.
        max_body_bytes: longest body.
    """

    def __init__(self, parts: Parts, max_body_bytes: int) -> None:
        self._parts = parts
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        return [
            Route(_JOBS, self._create, methods=["POST"]),
            Route(_JOBS, self._list, methods=["GET"]),
            Route(_JOB, self._get, methods=["GET"]),
            Route(f"{_JOB}/cancel", self._cancel, methods=["POST"]),
            Route(f"{_JOB}/pause", self._pause, methods=["POST"]),
            Route(f"{_JOB}/resume", self._resume, methods=["POST"]),
            Route(f"{_JOB}/events", self._events, methods=["GET"]),
            Route(f"{_JOB}/checkpoints", self._checkpoints, methods=["GET"]),
        ]

    async def _create(self, request: Request) -> Response:
        body = parse_json(await read_body(request, self._max_body_bytes))
        wanted = replace(read_create(body), tenant=caller().tenant)
        key = request.headers.get("idempotency-key", "")
        try:
            job = await self._parts.intake.create(wanted, key)
        except InvalidRequest as error:
            use_openais_words(error)
            raise
        return await self._answer(job)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        metadata, others = read_filter(query)
        paging = read_paging(query, others=others)
        page = await asyncio.to_thread(
            self._parts.jobs.page, paging, caller().tenant, metadata or {}, metadata is None
        )
        data = [await asyncio.to_thread(self._write, job) for job in page.items]
        return JSONResponse(write_page(data, page.has_more))

    async def _get(self, request: Request) -> Response:
        return await self._answer(await self._find(request))

    async def _cancel(self, request: Request) -> Response:
        job = await self._parts.queue.cancel(_id(request), caller())
        if job.state != "cancelled":
            raise WrongState(f"only a job that has not ended can be cancelled; it has {job.state}")
        return await self._answer(job)

    async def _pause(self, request: Request) -> Response:
        return await self._answer(await self._parts.queue.pause(_id(request), caller()))

    async def _resume(self, request: Request) -> Response:
        return await self._answer(await self._parts.queue.resume(_id(request), caller()))

    async def _events(self, request: Request) -> Response:
        job = await self._find(request)
        paging = _paging(request)
        before = event_number(job, paging.after) if paging.after else None
        folder = self._parts.folder / job.id
        events = await asyncio.to_thread(read_newest, folder, before, paging.limit + 1)
        data = await asyncio.to_thread(
            lambda: [write_event(job, folder, event) for event in events[: paging.limit]]
        )
        return JSONResponse(write_page(data, len(events) > paging.limit))

    async def _checkpoints(self, request: Request) -> Response:
        job = await self._find(request)
        paging = _paging(request, default_limit=10)
        found = await asyncio.to_thread(saved, self._parts.folder / job.id / CHECKPOINTS)
        if paging.after:
            step = checkpoint_step(job, paging.after)
            found = [one for one in found if one.step < step]
        folder = self._parts.folder / job.id
        data = await asyncio.to_thread(
            lambda: [write_checkpoint(job, folder, one) for one in found[: paging.limit]]
        )
        return JSONResponse(write_page(data, len(found) > paging.limit))

    async def _find(self, request: Request) -> Job:
        return await asyncio.to_thread(self._parts.jobs.get, _id(request), caller().tenant)

    async def _answer(self, job: Job) -> Response:
        return JSONResponse(await asyncio.to_thread(self._write, job))

    def _write(self, job: Job) -> dict[str, object]:
        return write_fine_tuning(job, self._parts.folder / job.id)


def _id(request: Request) -> str:
    id_: str = request.path_params["fine_tuning_job_id"]
    return id_


def _paging(request: Request, default_limit: int = 20) -> Paging:
    paging = read_paging(request.query_params, default_limit=default_limit)
    if paging.before or paging.order == "asc":
        raise InvalidRequest("this list takes 'after' and 'limit'; it is newest first", "order")
    return paging
