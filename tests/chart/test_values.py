"""Values: each explained, each with a schema, and wrong ones refused with a clear sentence."""

import copy
import json
import re

import helm_python as helm
import jsonschema
import pytest
import yaml

from deploy.values_schema import written
from tests.chart.chart import CASES, CHART, render, values

TEXT = (CHART / "values.yaml").read_text()
DEFAULTS = yaml.safe_load(TEXT)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_the_schema_is_what_the_settings_say():
    """`python -m deploy.values_schema` would change nothing."""
    assert (CHART / "values.schema.json").read_text() == written()


def test_every_value_has_its_comment():
    """Above each value, and above or below the name of each group, stands what it is."""
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"\s*[\w./-]+:(.*)$", line):
            is_explained = lines[number - 1].lstrip().startswith("#")
            is_group = not match[1].strip() and lines[number + 1].lstrip().startswith("#")
            assert is_explained or is_group, line


def resolved(schema):
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def walk(defaults, schema, path=()):
    """Yield (path, defaults, schema) of each group of values that has a fixed set of keys."""
    schema = resolved(schema)
    if not isinstance(defaults, dict):
        return
    if "properties" in schema:
        yield path, defaults, schema
    for key, value in defaults.items():
        below = schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}
        yield from walk(value, below, (*path, key))


GROUPS = list(walk(DEFAULTS, SCHEMA))


def test_the_schema_knows_the_values_that_there_are_and_no_others():
    """No value without a schema, and no schema of what has no default."""
    assert len(GROUPS) > 40
    for path, defaults, schema in GROUPS:
        if path and path[-1] in ("settings", "resources") and not defaults:
            continue  # there, the services' own defaults hold, and the profiles'
        known = set(schema["properties"]) - {"global"}
        assert known == set(defaults) or path[-1] in ("requests", "limits"), path


@pytest.mark.parametrize("path", [".".join(path) for path, *_ in GROUPS])
def test_unknown_values_are_refused_everywhere(path):
    """A value that is misspelt would do nothing, so it is an error."""
    wrong = copy.deepcopy(DEFAULTS)
    at = wrong
    for key in filter(None, path.split(".")):
        at = at[key]
    at["mispelt"] = {}
    with pytest.raises(jsonschema.ValidationError, match="mispelt"):
        jsonschema.Draft202012Validator(SCHEMA).validate(wrong)


def test_helm_itself_refuses_what_the_schema_refuses():
    """The engine reads the same schema, and names the value."""
    with pytest.raises(helm.HelmError, match="replicaCount"):
        render({"router": {"replicaCount": 2}})
    with pytest.raises(helm.HelmError, match="max_queue_s"):
        render({"encoder": {"poolDefaults": {"settings": {"max_queue_s": -1}}}})


def test_the_package_holds_the_schema_and_the_overlays(tmp_path):
    """What users download refuses wrong values too, and nothing of the tests is in it."""
    with helm.Chart.load(helm.package(CHART, destination=tmp_path)) as chart:
        assert chart.schema == SCHEMA
        names = {file["name"] for file in chart.files}
    assert {"values-production.yaml", "files/alerts.yaml", "files/smoke.py"} <= names
    assert not [name for name in names if name.startswith("ci/")]


@pytest.mark.parametrize("case", CASES)
def test_values_hold_what_the_schema_allows(case):
    """Each case and overlay is right by the schema alone, too."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values(case))


SHARED = {"database": {"existingSecret": "db"}, "files": {"url": "s3://bucket/x"}}
REFUSED = [
    ({"database": {"existingSecret": "db"}}, "database.existingSecret needs files.url"),
    ({"files": {"url": "s3://bucket/x"}}, "files.url needs database.existingSecret"),
    ({"state": {"accessMode": "ReadWriteMany"}}, "SQLite loses its locks"),
    (
        {"auth": {"enabled": False}, "ingress": {"enabled": True, "host": "a.b"}},
        "ingress and gateway need auth.enabled",
    ),
    (
        {"router": {"resources": {"requests": {"cpu": 8}}}},
        "router.resources.requests.cpu 8 must be at most limits.cpu 4",
    ),
    (
        {"encoder": {"poolDefaults": {"resources": {"limits": {"cpu": "1500m"}}}}},
        "encoder.pools.default.resources.requests.cpu 2 must be at most limits.cpu 1500m",
    ),
    ({"qdrant": {"resources": {"requests": {"cpu": "4500m"}}}}, "qdrant.resources.requests.cpu"),
    ({"qdrant": {"resources": {"requests": {"cpu": "1k"}}}}, "cpu"),
    ({"router": {"settings": {"secrets_dir": "/x"}}}, "secrets_dir"),
    ({"tls": {"enabled": True}}, "tls.enabled needs tls.existingSecret"),
    ({"tls": {"existingSecret": "tls"}}, "encrypts nothing while tls.enabled is false"),
    ({"auth": {"enabled": False, "keysSecret": "k"}}, "protect nothing"),
    ({"auth": {"enabled": False, "servicesSecret": "k"}}, "protect nothing"),
    ({"encoder": {"pools": {"default": None}}}, "encoder.pools must have a pool"),
    ({"router": {"pool": "gpu"}}, 'router.pool "gpu" is not one of encoder.pools: default'),
    ({"router": {"replicas": 2}}, "router.replicas above 1"),
    ({"router": {"autoscaling": {"enabled": True}}}, "router.autoscaling"),
    (SHARED | {"router": {"replicas": 2}, "qdrant": {"mode": "embedded"}}, "other than embedded"),
    ({"trainer": {"pool": "none"}}, 'trainer.pool "none" is not one of'),
    (SHARED | {"trainer": {"replicas": 2}}, "trainer.replicas above 1 need state.accessMode"),
    ({"trainer": {"launcher": "kubernetes"}}, "trainer.launcher kubernetes needs state.accessMode"),
    ({"trainer": {"jobs": {"queue": "team-a"}}}, "need trainer.launcher kubernetes"),
    ({"trainer": {"jobs": {"runtimeClassName": "nvidia"}}}, "need trainer.launcher kubernetes"),
    ({"trainer": {"jobs": {"tolerations": [{"taint": "gpu"}]}}}, "taint"),
    ({"trainer": {"jobs": {"tolerations": [{"operator": "In"}]}}}, "operator"),
    ({"encoder": {"pools": {"bulk": {"serves": "none"}}}}, r'serves "none" is not one of'),
    (
        {"encoder": {"pools": {"a": {"serves": "default"}, "b": {"serves": "a"}}}},
        "serves another pool itself",
    ),
    (
        {"encoder": {"pools": {"bulk": {"serves": "default", "model": "other"}}}},
        "vectors of two spaces",
    ),
    (
        {"encoder": {"poolDefaults": {"keda": {"enabled": True, "minReplicas": 0}}}},
        "keda.minReplicas 0 needs `serves`",
    ),
    (
        {
            "encoder": {
                "poolDefaults": {"keda": {"enabled": True}, "autoscaling": {"enabled": True}}
            }
        },
        "encoder.pools.default has both autoscaling and keda",
    ),
    ({"encoder": {"poolDefaults": {"keda": {"enabled": True}}}}, "keda.prometheusUrl must name"),
    (
        {"encoder": {"poolDefaults": {"autoscaling": {"enabled": True, "minReplicas": 9}}}},
        "autoscaling.minReplicas must be at most maxReplicas",
    ),
    (
        {"encoder": {"poolDefaults": {"autoscaling": {"enabled": True, "targetCPUPercent": 0}}}},
        "needs something to look at",
    ),
    ({"encoder": {"poolDefaults": {"profile": "tpu"}}}, 'profile "tpu" is not one of profiles'),
    ({"router": {"drain": {"graceSeconds": 50}}}, "must be above 60"),
    ({"trainer": {"settings": {"stop_s": 100, "lease_s": 300}}}, "must be above 140"),
    ({"qdrant": {"mode": "external"}}, "qdrant.mode external needs qdrant.url"),
    ({"qdrant": {"url": "http://q:6333"}}, "qdrant.url is for qdrant.mode external"),
    ({"qdrant": {"mode": "embedded", "tlsSecret": "q"}}, "qdrant.tlsSecret encrypts nothing"),
    (
        {"qdrant": {"mode": "external", "url": "http://q:6333", "tlsSecret": "q"}},
        "qdrant.tlsSecret encrypts nothing",
    ),
    ({"qdrant": {"replicationFactor": 2}}, "qdrant.replicationFactor must be at most"),
    ({"qdrant": {"preStopSeconds": 120}}, "must be above qdrant.preStopSeconds"),
    ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.host"),
    ({"gateway": {"enabled": True}}, "gateway.enabled needs gateway.parentRefs"),
    (
        {
            "gateway": {
                "enabled": True,
                "parentRefs": [{"name": "g"}],
                "hostnames": ["a.b"],
                "grpcHostnames": ["a.b"],
            }
        },
        "gRPC needs a host of its own",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=lambda part: str(part)[:60])
def test_values_that_contradict_each_other_are_refused(given, sentence):
    """With one sentence that says what would do."""
    with pytest.raises(helm.HelmError, match=re.escape(sentence).replace(r"\ ", " ")):
        render(given)


def test_false_and_zero_of_a_pool_win_over_the_defaults():
    """Sprig's own merges would lose them."""
    made = render(
        {
            "encoder": {
                "poolDefaults": {"autoscaling": {"enabled": True}},
                "pools": {"still": {"autoscaling": {"enabled": False}}},
            }
        }
    )
    (scaled,) = made.of("HorizontalPodAutoscaler")
    assert scaled["metadata"]["name"].endswith("encoder-default")
