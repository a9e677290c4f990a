"""From what was seen to what is wrong, and what to do: each check a few lines, no call in any."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from services.cli.doctor.facts import Facts, Failure, Http, Service
from services.cli.doctor.targets import Name
from services.cli.peer import KEY_VARIABLE

Status = Literal["ok", "warning", "problem"]

# A server's Date has whole seconds, so a clock that is right may seem a second off.
_SKEW_WARNING_S, _SKEW_PROBLEM_S = 2.0, 30.0
_DISK_WARNING, _DISK_PROBLEM = 0.1, 0.02
_LOOPBACK = ("127.", "localhost", "[::1]")
# What OpenSSL and gRPC say where two sides do not agree on TLS or on certificates.
_TLS_WORDS = ("CERTIFICATE", "SSL", "HANDSHAKE", "SOCKET CLOSED")
_TLS_ADVICE = (
    "give the CA of its certificate (`matryoshka --tls-ca FILE doctor`), and, where it asks for "
    "one of this side, --tls-cert and --tls-key"
)
_MAX_REFUSED, _FEWEST_REQUESTS = 0.05, 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    about: str
    """A service, or what several of them have in common."""
    check: str
    """A word for what was looked at."""
    text: str
    todo: str = ""
    """What to do; "" where all is well."""


def findings(facts: Facts, version: str) -> list[Finding]:
    """Judge a deployment.

    Args:
        facts: what was seen.
        version: of the command that looks.
    """
    found: list[Finding] = []
    samples = {
        name: _samples(service.http.metrics or "") for name, service in facts.services.items()
    }
    for name, service in facts.services.items():
        found += _reach(name, service)
        if service.http.metrics is not None:
            found += _metrics(name, samples[name])
            found += _storage(name, service.http, samples[name])
        found += _clock(name, service.http)
        found += _key(name, service)
    found += _versions(samples, version)
    encoder = facts.services.get("encoder")
    if encoder and encoder.grpc.failure is None and encoder.grpc.call is None:
        found += _devices(facts)
    found += _spaces(facts)
    found += _search(facts)
    found += _jobs(facts)
    return found


def _reach(name: str, service: Service) -> Iterator[Finding]:
    http, grpc = service.http, service.grpc
    if http.error:
        yield Finding(
            "problem", name, "http", f"{http.url} cannot be reached: {http.error}",
            _where(http.error, f"--{name}-http", is_tls=http.url.startswith("https:")),
        )  # fmt: skip
    elif not http.is_live:
        yield Finding(
            "problem", name, "http", f"{http.url} is no service of ours: it has no /livez",
            f"say where the {name} is with --{name}-http",
        )  # fmt: skip
    elif not http.is_ready:
        yield Finding(
            "problem", name, "http", f"{http.url} is not ready",
            "it starts or stops: its log says what it is at; ask again in a minute",
        )  # fmt: skip
    else:
        yield Finding("ok", name, "http", f"{http.url} is ready")
    if grpc.failure and grpc.failure.code == "NOT_FOUND":
        yield Finding(
            "problem", name, "grpc", f"{grpc.address} serves no {name}",
            f"say where it is with --{name}; none, if there is none",
        )  # fmt: skip
    elif grpc.failure:
        yield Finding(
            "problem", name, "grpc", f"{grpc.address} cannot be reached: {_said(grpc.failure)}",
            _where(_said(grpc.failure), f"--{name}"),
        )  # fmt: skip
    elif grpc.health != "SERVING":
        yield Finding(
            "problem", name, "grpc", f"{grpc.address} says {grpc.health}",
            "it starts or stops: its log says what it is at; ask again in a minute",
        )  # fmt: skip
    else:
        yield Finding("ok", name, "grpc", f"{grpc.address} is serving")


def _where(failure: str, option: str, *, is_tls: bool = False) -> str:
    """Return what to do where nothing was reached; over TLS, or by its words, it may be TLS."""
    if any(word in failure.upper() for word in _TLS_WORDS):
        return _TLS_ADVICE
    todo = f"start it, or say where it is with {option}"
    return f"{todo}; if it is there, {_TLS_ADVICE}" if is_tls else todo


def _key(name: str, service: Service) -> Iterator[Finding]:
    grpc = service.grpc
    if grpc.failure or grpc.health != "SERVING":
        return
    if grpc.call and grpc.call.code == "UNAUTHENTICATED":
        yield Finding(
            "problem", name, "key", "the key is refused, or one is needed",
            f"give an operator's key with --api-key, --{name}-api-key or in {KEY_VARIABLE}",
        )  # fmt: skip
    elif grpc.call and grpc.call.code == "PERMISSION_DENIED":
        yield Finding(
            "problem", name, "key", f"this key may not do that: {_said(grpc.call)}",
            "give an operator's key that is not limited by scopes, or one with that scope",
        )  # fmt: skip
    elif grpc.call:
        yield Finding(
            "problem", name, "call", f"a call failed: {_said(grpc.call)}", "its log says more"
        )
    elif not grpc.asks_for_key and not grpc.address.startswith(_LOOPBACK):
        yield Finding(
            "warning", name, "key", f"whoever reaches {grpc.address} may do everything",
            f"set MATRYOSHKA_{name.upper()}_API_KEY or MATRYOSHKA_{name.upper()}_KEYS_FILE",
        )  # fmt: skip
    else:
        yield Finding("ok", name, "key", "calls are answered")


def _clock(name: str, http: Http) -> Iterator[Finding]:
    if http.skew_s is None:
        return
    off, ahead = abs(http.skew_s), "ahead of" if http.skew_s > 0 else "behind"
    if off <= _SKEW_WARNING_S:
        yield Finding("ok", name, "clock", "its clock agrees with this machine's")
        return
    yield Finding(
        "problem" if off > _SKEW_PROBLEM_S else "warning", name, "clock",
        f"its clock is {off:.0f} s {ahead} this machine's",
        "set both by NTP: leases and expiry dates of several services rest on their clocks",
    )  # fmt: skip


def _metrics(name: str, samples: list[Sample]) -> Iterator[Finding]:
    prefix = f"matryoshka_{name}_"
    if not any(sample.name.startswith(prefix) for sample in samples):
        yield Finding(
            "problem", name, "metrics", f"/metrics has nothing that begins with {prefix}",
            f"say where the {name} is with --{name}-http",
        )  # fmt: skip
        return
    broken = sorted({one.name for one in samples if not _is_sane(one)})
    if broken:
        yield Finding(
            "warning", name, "metrics", f"no sane number: {', '.join(broken)}",
            "report it, with the log of the service",
        )  # fmt: skip
    else:
        yield Finding("ok", name, "metrics", f"{len(samples)} numbers, all of them sane")
    over_limit = sum(_sums(samples, f"{prefix}over_limit_total", "limit").values())
    yield from _outcomes(name, _sums(samples, f"{prefix}requests_total", "outcome"), over_limit)
    yield from _disk(name, _sums(samples, "matryoshka_server_disk_bytes", "part"))
    if any(_sums(samples, f"{prefix}recall_alarms_count", "slice").values()):
        yield Finding(
            "warning", name, "recall", "live searches of a slice fell below what was promised",
            "`matryoshka recall COLLECTION` says which, why, and what helps",
        )  # fmt: skip


def _storage(name: str, http: Http, samples: list[Sample]) -> Iterator[Finding]:
    encrypted = _sums(samples, f"matryoshka_{name}_storage_count", "encrypted")
    if "yes" in encrypted:
        yield Finding("ok", name, "storage", "its Qdrant server is called over TLS")
    elif "no" in encrypted and http.url.startswith("https://"):
        yield Finding(
            "warning", name, "storage", "it speaks TLS, and calls its Qdrant server without: "
            "vectors, attributes and the server's key cross the network in clear",
            "give the server a certificate, and MATRYOSHKA_ROUTER_QDRANT_URL as https:// (of the "
            "chart: qdrant.tlsSecret)",
        )  # fmt: skip


def _samples(text: str) -> list[Sample]:
    """Read /metrics; what is none has no samples."""
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError:
        return []
    return [sample for family in families for sample in family.samples]


def _is_sane(sample: Sample) -> bool:
    is_count = sample.name.endswith(("_total", "_bytes", "_bucket", "_count", "_created"))
    return not math.isnan(sample.value) and not (is_count and sample.value < 0)


def _sums(samples: list[Sample], name: str, label: str) -> dict[str, float]:
    """Return {value of a label: sum of the samples that carry it}, of one metric."""
    sums: dict[str, float] = {}
    for sample in samples:
        if sample.name == name:
            value = sample.labels.get(label, "")
            sums[value] = sums.get(value, 0.0) + sample.value
    return sums


def _outcomes(name: str, totals: dict[str, float], over_limit: float) -> Iterator[Finding]:
    requests = sum(totals.values())
    if bugs := totals.get("INTERNAL", 0) + totals.get("UNKNOWN", 0):
        yield Finding(
            "warning", name, "errors", f"{bugs:,.0f} of {requests:,.0f} requests ended in an error "
            "of ours since it started", "its log has the traceback of each",
        )  # fmt: skip
    # Those over a key's own limit say nothing of the service: more cores would refuse them too.
    refused = max(0.0, totals.get("RESOURCE_EXHAUSTED", 0) - over_limit)
    if requests >= _FEWEST_REQUESTS and refused / requests > _MAX_REFUSED:
        yield Finding(
            "warning", name, "load", f"{refused / requests:.0%} of {requests:,.0f} requests were "
            "refused as too much since it started", "give it more cores, or run another beside it; "
            "`matryoshka plan-capacity` says how many",
        )  # fmt: skip


def _disk(name: str, parts: dict[str, float]) -> Iterator[Finding]:
    free, whole = parts.get("free", 0.0), parts.get("whole", 0.0)
    if not whole:
        return
    said = f"{free / 2**30:,.1f} of {whole / 2**30:,.1f} GiB are free for its data"
    if free / whole > _DISK_WARNING:
        yield Finding("ok", name, "disk", said)
        return
    yield Finding(
        "problem" if free / whole <= _DISK_PROBLEM else "warning", name, "disk", said,
        "make room, or move its data folder to a larger disk",
    )  # fmt: skip


def _versions(samples: dict[Name, list[Sample]], version: str) -> Iterator[Finding]:
    found = {
        name: one
        for name, its in samples.items()
        for one in _sums(its, "matryoshka_server_versions_count", "version")
    }
    if not found:
        return
    if {*found.values()} == {version}:
        yield Finding("ok", "all", "versions", f"{version} everywhere")
        return
    said = ", ".join(f"{name} {one}" for name, one in found.items())
    yield Finding(
        "warning", "all", "versions", f"{said}, and this command {version}",
        "bring all to one version",
    )  # fmt: skip


def _devices(facts: Facts) -> Iterator[Finding]:
    if not facts.models:
        yield Finding(
            "problem", "encoder", "models", "it serves no model", "`matryoshka models load FOLDER`"
        )
        return
    ids = ", ".join(model.id for model in facts.models)
    yield Finding("ok", "encoder", "models", f"it serves {ids}")
    accelerated = {one.device for one in facts.models if one.device not in ("", "cpu")}
    on_cpu = [one.id for one in facts.models if one.device == "cpu"]
    if accelerated and on_cpu:
        yield Finding(
            "warning", "encoder", "gpu",
            f"{', '.join(on_cpu)} on the CPU, others on {', '.join(sorted(accelerated))}",
            "load it again; the log says why the accelerator was not taken",
        )  # fmt: skip
    elif accelerated:
        yield Finding("ok", "encoder", "gpu", f"models run on {', '.join(sorted(accelerated))}")


def _spaces(facts: Facts) -> Iterator[Finding]:
    if not {"encoder", "router"} <= facts.services.keys() or not facts.models:
        return
    models = {model.id: model for model in facts.models}
    right = 0
    for collection in facts.collections:
        model, wrong = models.get(collection.model), ""
        if model is None:
            wrong = f"the encoder does not serve its model {collection.model}"
        elif model.space_id != collection.space_id:
            wrong = (
                f"it holds space {collection.space_id}, and the encoder's {model.id} makes "
                f"{model.space_id}"
            )
        elif model.dim != collection.dim:
            wrong = f"it holds {collection.dim} numbers, and {model.id} makes {model.dim}"
        if wrong:
            yield Finding(
                "problem", "router", "space", f"{collection.name}: {wrong}",
                "load the model that it was made with (`matryoshka models load`), or migrate it",
            )  # fmt: skip
        else:
            right += 1
        if collection.change_error:
            yield Finding(
                "warning", "router", "change",
                f"{collection.name}: a change of it failed: {collection.change_error}",
                "mend that and ask for the change again, or cancel it",
            )  # fmt: skip
    if right:
        yield Finding(
            "ok", "router", "space", f"{right} collections agree with the encoder in space and size"
        )


def _search(facts: Facts) -> Iterator[Finding]:
    if not facts.searched:
        return
    if facts.search is None:
        yield Finding("ok", "router", "search", f"a text was searched in {facts.searched}")
        return
    todo = "its log says more"
    if facts.search.code == "UNAVAILABLE":
        todo = (
            "see that the router reaches the encoder and the storage: "
            "MATRYOSHKA_ROUTER_ENCODER_ADDRESS, MATRYOSHKA_ROUTER_QDRANT_URL, and with TLS "
            "MATRYOSHKA_ROUTER_TLS_PEER_CA, MATRYOSHKA_ROUTER_QDRANT_TLS_CA"
        )
    elif facts.search.code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        todo = "set MATRYOSHKA_ROUTER_ENCODER_API_KEY to an operator's key of the encoder"
    yield Finding(
        "problem", "router", "search",
        f"a search in {facts.searched} failed: {_said(facts.search)}", todo,
    )  # fmt: skip


def _jobs(facts: Facts) -> Iterator[Finding]:
    if facts.failed_jobs:
        yield Finding(
            "warning", "trainer", "jobs", f"the newest jobs that failed: "
            f"{', '.join(facts.failed_jobs[:3])}", "their events say why (GetJob, or OpenAI's "
            "/v1/fine_tuning/jobs/ID/events)",
        )  # fmt: skip


def _said(failure: Failure) -> str:
    return failure.message or failure.code
