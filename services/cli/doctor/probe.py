"""Asks the services of a deployment: probes, metrics, health, lists, and one search.

Nothing is changed; the search is a live one, so it is counted as one.
"""

import asyncio
import email.utils
import time
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.doctor.facts import Collection, Facts, Failure, Grpc, Http, Model, Service
from services.cli.doctor.targets import Name, Target
from services.cli.peer import connect, metadata, tls_context
from services.shared.pb import (
    encoder_pb2,
    encoder_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

_QUERY = "a text to see whether a search is answered"
_NEWEST_JOBS = 20
_STUBS: dict[Name, Any] = {
    "encoder": encoder_pb2_grpc.EncoderServiceStub,
    "router": router_pb2_grpc.RouterServiceStub,
    "trainer": trainer_pb2_grpc.TrainerServiceStub,
}
# A call of each that costs little and that operators may make.
_CALLS: dict[Name, tuple[str, Any]] = {
    "encoder": ("ListModels", encoder_pb2.ListModelsRequest),
    "router": ("ListCollections", router_pb2.ListCollectionsRequest),
    "trainer": ("ListJobs", lambda: trainer_pb2.ListJobsRequest(limit=_NEWEST_JOBS)),
}


async def look_at(targets: list[Target], timeout_s: float) -> Facts:
    """Ask all services at once.

    Args:
        targets: those that there should be.
        timeout_s: longest wait for one answer.
    """
    seen = await asyncio.gather(*(_look_at_one(target, timeout_s) for target in targets))
    services = {target.name: service for target, (service, _) in zip(targets, seen, strict=True)}
    answers: dict[Name, Any] = {
        target.name: answer for target, (_, answer) in zip(targets, seen, strict=True)
    }
    models = tuple(map(_model, answers["encoder"].models)) if answers.get("encoder") else ()
    collections: tuple[Collection, ...] = ()
    searched, search = "", None
    if answers.get("router"):
        collections = tuple(map(_collection, answers["router"].collections))
        (router,) = (target for target in targets if target.name == "router")
        full = [one.name for one in collections if one.num_points]
        if full:
            searched = full[0]
            search = await _search(router, searched, timeout_s)
    failed: tuple[str, ...] = ()
    if answers.get("trainer"):
        failed = tuple(job.id for job in answers["trainer"].jobs if job.error)
    return Facts(services, models, collections, searched, search, failed)


async def _look_at_one(target: Target, timeout_s: float) -> tuple[Service, Any]:
    http, (grpc_seen, answer) = await asyncio.gather(
        _ask_http(target, timeout_s), _ask_grpc(target, timeout_s)
    )
    return Service(http, grpc_seen), answer


async def _ask_http(target: Target, timeout_s: float) -> Http:
    try:
        async with httpx.AsyncClient(
            base_url=target.http, timeout=timeout_s, verify=tls_context()
        ) as client:
            before_s = time.time()
            live = await client.get("/livez")
            now_s = (before_s + time.time()) / 2
            ready = await client.get("/readyz")
            metrics = await client.get("/metrics")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Http(target.http, error=str(error) or type(error).__name__)
    return Http(
        target.http,
        is_live=live.status_code == 200,
        is_ready=ready.status_code == 200,
        skew_s=_skew_s(live.headers.get("date", ""), now_s),
        metrics=metrics.text if metrics.status_code == 200 else None,
    )


def _skew_s(date: str, now_s: float) -> float | None:
    """Return how far a server's clock is ahead; its date has whole seconds, cut off."""
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now_s
    except ValueError:
        return None


async def _ask_grpc(target: Target, timeout_s: float) -> tuple[Grpc, Any]:
    """Return what was seen, and the answer of the first call; None: there was none."""
    service = f"matryoshka.v1.{target.name.capitalize()}Service"
    async with connect(target.grpc) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            found = await health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.aio.AioRpcError as error:
            return Grpc(target.grpc, failure=_failure(error)), None
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)
        method, request = _CALLS[target.name]
        call = getattr(_STUBS[target.name](channel), method)
        try:
            answer = await call(request(), timeout=timeout_s, metadata=metadata(target.api_key))
        except grpc.aio.AioRpcError as error:
            return Grpc(target.grpc, health=status, call=_failure(error)), None
        asks = True
        try:
            await call(request(), timeout=timeout_s)
            asks = False
        except grpc.aio.AioRpcError as error:
            asks = error.code() is grpc.StatusCode.UNAUTHENTICATED
        return Grpc(target.grpc, health=status, asks_for_key=asks), answer


async def _search(router: Target, collection: str, timeout_s: float) -> Failure | None:
    async with connect(router.grpc) as channel:
        stub: Any = router_pb2_grpc.RouterServiceStub(channel)
        request = router_pb2.SearchRequest(collection=collection, text=_QUERY, limit=1)
        try:
            await stub.Search(request, timeout=timeout_s, metadata=metadata(router.api_key))
        except grpc.aio.AioRpcError as error:
            return _failure(error)
    return None


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    return Failure(error.code().name, error.details() or "")


def _model(model: encoder_pb2.Model) -> Model:
    return Model(model.id, model.space_id, model.dim, model.device, tuple(model.aliases))


def _collection(collection: router_pb2.Collection) -> Collection:
    return Collection(
        collection.name, collection.model, collection.space_id, collection.sizes[-1].dim,
        collection.num_points, collection.change.error,
    )  # fmt: skip
