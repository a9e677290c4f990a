"""Writes the chart's values.schema.json: what every value may be, and no other value.

The part of each `settings` comes from the services' own settings classes, so that a field that is
added there is known to the chart, with its bounds. `python -m deploy.values_schema` writes it; a
test holds the file against this module.
"""

import json
from pathlib import Path
from typing import Any

from services.encoder.settings import EncoderSettings
from services.router.settings import RouterSettings
from services.shared.metrics import SECONDS_BUCKETS
from services.shared.settings import ServerSettings
from services.trainer.settings import TrainerSettings

Schema = dict[str, Any]

CHART = Path(__file__).parent / "k8s" / "matryoshka"
# What the chart sets by itself, or takes from Secrets; it may not be set again in `settings`.
SET_BY_THE_CHART: dict[type[ServerSettings], frozenset[str]] = {
    EncoderSettings: frozenset({"model", "served_file"}),
    RouterSettings: frozenset(
        {
            "encoder_address", "encoder_api_key", "trainer_address", "trainer_api_key",
            "tls_peer_ca", "qdrant_url", "qdrant_grpc_port", "qdrant_api_key", "qdrant_tls_ca",
            "database_url", "files_url",
        }
    ),
    TrainerSettings: frozenset(
        {
            "encoder_address", "encoder_api_key", "router_address", "router_api_key",
            "tls_peer_ca", "database_url", "files_database_url", "files_url", "launcher", "devices",
            "kubernetes_namespace", "kubernetes_image", "kubernetes_claim", "kubernetes_nodes",
            "kubernetes_gpus", "kubernetes_cpu", "kubernetes_memory", "kubernetes_queue",
            "kubernetes_node_selector", "kubernetes_tolerations", "kubernetes_runtime_class",
            "kubernetes_priority_class",
        }
    ),
}  # fmt: skip
SHARED = frozenset(
    {
        "host", "http_port", "grpc_port", "data_dir", "secrets_dir", "api_key", "keys_file",
        "peer_keys_file", "drain_s", "grace_s", "log_format", "probe_port", "tls_cert", "tls_key",
        "tls_grpc_client_ca", "tls_http_client_ca",
    }
)  # fmt: skip

TEXT: Schema = {"type": "string"}
SWITCH: Schema = {"type": "boolean"}
NAME: Schema = {
    "type": "string",
    "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$",
    "maxLength": 253,
}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
CORES: Schema = {
    "anyOf": [
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?m?$"},
        {"type": "number", "minimum": 0},
    ]
}
DIGEST: Schema = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}
DURATION: Schema = {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
SHARE: Schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
# Below it, not even a total failure would spend the budget 14.4 times too fast.
OBJECTIVE: Schema = {"type": "number", "minimum": 0.95, "exclusiveMaximum": 1}
# What Kubernetes takes; its own API says what is wrong in them.
OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
ANY_OBJECT: Schema = {"type": "object"}


def at_least(least: int) -> Schema:
    return {"type": "integer", "minimum": least}


def number(least: float) -> Schema:
    return {"type": "number", "minimum": least}


def choice(*allowed: str | float) -> Schema:
    return {"enum": list(allowed)}


def fields(**properties: Schema) -> Schema:
    """Return an object of these and of nothing else."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def settings_of(kind: type[ServerSettings]) -> Schema:
    """Return what may stand in a service's `settings`: its fields, but for those of the chart."""
    schema = kind.model_json_schema()
    properties = {}
    for name, found in sorted(schema["properties"].items()):
        if name in SHARED or name in SET_BY_THE_CHART[kind]:
            continue
        if found.get("format") == "password" or "SecretStr" in str(kind.model_fields[name]):
            continue  # secrets come by reference
        kept = {key: found[key] for key in found if key not in ("title", "default", "format")}
        for option in kept.get("anyOf", ()):
            option.pop("format", None)
        properties[name] = kept
    return fields(**properties)


def image() -> Schema:
    return fields(repository={"type": "string", "minLength": 1}, tag=TEXT, digest=DIGEST)


def resources() -> Schema:
    amounts = {
        "type": "object",
        "properties": {"cpu": CORES},
        "additionalProperties": {"anyOf": [QUANTITY, at_least(0)]},
    }
    return fields(requests=amounts, limits=amounts)


def placement() -> dict[str, Schema]:
    """Return the values by which a service's pods are put somewhere, and told apart."""
    return {
        "priorityClassName": NAME,
        "nodeSelector": LABELS,
        "tolerations": OBJECTS,
        "affinity": ANY_OBJECT,
        "podAnnotations": LABELS,
    }


def of_pods() -> dict[str, Schema]:
    return placement() | {
        "replicas": at_least(1),
        "resources": resources(),
        "startupBudgetSeconds": at_least(5),
        "serviceAccountAnnotations": LABELS,
        "extraEnv": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "not": {"pattern": "^MATRYOSHKA_"}}},
            },
        },
    }


def drain() -> Schema:
    return fields(
        drainSeconds=number(0),
        graceSeconds=number(0),
        terminationGracePeriodSeconds=at_least(1),
    )


def autoscaling(**more: Schema) -> Schema:
    return fields(
        enabled=SWITCH,
        minReplicas=at_least(1),
        maxReplicas=at_least(1),
        targetCPUPercent={"type": "integer", "minimum": 0, "maximum": 1000},
        metrics=OBJECTS,
        **more,
    )


def keda(least: int, **more: Schema) -> Schema:
    return fields(
        enabled=SWITCH,
        minReplicas=at_least(least),
        maxReplicas=at_least(1),
        prometheusUrl={"type": "string", "pattern": "^(https?://.+)?$"},
        fallbackReplicas=at_least(0),
        **more,
    )


def claim(**more: Schema) -> Schema:
    return fields(size=QUANTITY, storageClass=NAME, **more)


def pool() -> Schema:
    own = {
        "model": {"type": "string", "minLength": 1},
        "settings": settings_of(EncoderSettings),
        "profile": NAME,
        "serves": NAME,
        "readsTrainedModels": SWITCH,
        "persistence": claim(enabled=SWITCH),
        "models": fields(existingClaim=NAME),
        "autoscaling": autoscaling(targetQueuedTokens=at_least(0)),
        "keda": keda(
            0,
            targetQueuedTokens=at_least(1),
            targetQueueSeconds=number(0),
            wakeAtQueuedTokens=at_least(0),
            cooldownSeconds=at_least(0),
        ),
    }
    return fields(**own, **of_pods())


def encoder() -> Schema:
    # 15 characters: names of objects may have 63.
    name = "^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$"
    pools = {
        "type": "object",
        "patternProperties": {name: {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pool"}]}},
        "additionalProperties": False,
    }
    return fields(poolDefaults={"$ref": "#/$defs/pool"}, pools=pools, drain=drain())


def router() -> Schema:
    own = {
        "enabled": SWITCH,
        "pool": NAME,
        "settings": settings_of(RouterSettings),
        "autoscaling": autoscaling(),
        "keda": keda(1, targetRequestsPerSecond=number(0.001), targetSearchSeconds=number(0)),
        "drain": drain(),
    }
    return fields(**own, **of_pods())


def toleration() -> Schema:
    """Return what a job's pods may tolerate: no cluster looks at it before there is a job."""
    return fields(
        key=TEXT,
        operator=choice("Equal", "Exists"),
        value=TEXT,
        effect=choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
        tolerationSeconds={"type": "integer"},
    )


def trainer() -> Schema:
    jobs = fields(
        image=choice("cpu", "cuda"),
        nodes=at_least(1),
        devices=at_least(1),
        gpus=at_least(0),
        cpu=QUANTITY,
        memory=QUANTITY,
        queue=NAME,
        nodeSelector=LABELS,
        tolerations={"type": "array", "items": toleration()},
        runtimeClassName=NAME,
        priorityClassName=NAME,
    )
    own = {
        "enabled": SWITCH,
        "pool": NAME,
        "settings": settings_of(TrainerSettings),
        "profile": NAME,
        "launcher": choice("local", "kubernetes"),
        "jobs": jobs,
        "drain": drain(),
    }
    return fields(**own, **of_pods())


def qdrant() -> Schema:
    return fields(
        mode=choice("bundled", "external", "embedded"),
        url={"type": "string", "pattern": "^(https?://.+)?$"},
        grpcPort={"type": "integer", "minimum": 1, "maximum": 65535},
        existingSecret=NAME,
        tlsSecret=NAME,
        image=image(),
        replicas=at_least(1),
        replicationFactor=at_least(1),
        resources=resources(),
        persistence=claim(),
        startupBudgetSeconds=at_least(5),
        preStopSeconds=at_least(1),
        terminationGracePeriodSeconds=at_least(1),
        **placement(),
    )


def network_policy() -> Schema:
    ports = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
    addresses = {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "/[0-9]+$"}}
    peers = fields(podSelector=ANY_OBJECT, namespaceSelector=ANY_OBJECT, ipBlock=ANY_OBJECT)
    rules = fields(to={"type": "array", "items": peers}, ports=OBJECTS)
    return fields(
        enabled=SWITCH,
        dns={"type": "array", "minItems": 1, "items": peers},
        clients={"type": "array", "items": peers},
        monitoring={"type": "array", "items": peers},
        external={"type": "array", "items": rules},
        externalPorts=ports,
        kubernetesApi=addresses,
        kubernetesApiPorts=ports,
        modelHubs={"type": "array", "items": rules},
        trainingSources={"type": "array", "items": rules},
        traces={"type": "array", "items": rules},
    )


def monitoring() -> Schema:
    bounds = choice(*SECONDS_BUCKETS)
    return fields(
        monitors=SWITCH,
        rules=SWITCH,
        dashboards=SWITCH,
        annotations=SWITCH,
        labels=LABELS,
        dashboardLabel={"type": "string", "minLength": 1},
        interval=DURATION,
        slo=fields(
            availability=OBJECTIVE,
            latency=OBJECTIVE,
            encoderSeconds=bounds,
            routerSeconds=bounds,
        ),
        thresholds=fields(queue=SHARE, drift=SHARE, folders=SHARE),
    )


def profile() -> Schema:
    return fields(
        image=choice("cpu", "cuda"),
        resources=resources(),
        nodeSelector=LABELS,
        tolerations=OBJECTS,
        runtimeClassName=NAME,
    )


def schema() -> Schema:
    """Return the whole."""
    names = {"type": "array", "items": NAME}
    texts = {"type": "array", "items": TEXT}
    whole = fields(
        **{"global": ANY_OBJECT},  # Helm's own, for charts that hold this one
        nameOverride=NAME,
        fullnameOverride=NAME,
        commonLabels=LABELS,
        logFormat=choice("json", "text"),
        images=fields(
            registry=TEXT,
            pullPolicy=choice("IfNotPresent", "Always", "Never"),
            pullSecrets=names,
            cpu=image(),
            cuda=image(),
            router=image(),
        ),
        auth=fields(enabled=SWITCH, existingSecret=NAME, keysSecret=NAME, servicesSecret=NAME),
        tls=fields(enabled=SWITCH, existingSecret=NAME, mutual=SWITCH),
        database=fields(existingSecret=NAME, key={"type": "string", "minLength": 1}),
        files=fields(url={"type": "string", "pattern": "^([a-z0-9]+://.+)?$"}, existingSecret=NAME),
        state=claim(existingClaim=NAME, accessMode=choice("ReadWriteOnce", "ReadWriteMany")),
        profiles={"type": "object", "additionalProperties": profile()},
        encoder=encoder(),
        router=router(),
        trainer=trainer(),
        qdrant=qdrant(),
        spread=fields(
            whenUnsatisfiable=choice("ScheduleAnyway", "DoNotSchedule"), topologyKeys=texts
        ),
        priorityClasses=fields(create=SWITCH, serving=at_least(0), bulk=at_least(0)),
        ingress=fields(
            enabled=SWITCH, className=NAME, host=NAME, annotations=LABELS, tlsSecret=NAME
        ),
        gateway=fields(enabled=SWITCH, parentRefs=OBJECTS, hostnames=names, grpcHostnames=names),
        networkPolicy=network_policy(),
        monitoring=monitoring(),
        tests=fields(enabled=SWITCH),
        extraObjects=OBJECTS,
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart matryoshka",
        **whole,
        "$defs": {"pool": pool()},
    }


def written() -> str:
    return json.dumps(schema(), indent=1, sort_keys=False) + "\n"


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(written())
