"""Alerts, dashboards and scalers ask for metrics that the services have, by labels they have."""

import json
import re
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from services.encoder.metrics import EncoderMetrics
from services.router.metrics import RouterMetrics
from services.shared.metrics import SECONDS_BUCKETS, show_server
from services.trainer.metrics import TrainerMetrics
from tests.chart.chart import CHART, RELEASE, ROOT, rendered
from tests.chart.promql import groupings, selectors

# Those that Prometheus and the monitors put onto every sample.
TARGET = {"namespace", "pod", "job", "instance", "container", "release", "pool", "serves"}
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
ENDS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def exported():
    """Return {name of a sample: its labels} of the real registries, a process's own included."""
    found = {"up": set()}
    process = CollectorRegistry()
    show_server(process, "0", Path())
    for family in process.collect():
        found |= {sample.name: set(sample.labels) for sample in family.samples}
    for kind in (EncoderMetrics, RouterMetrics, TrainerMetrics):
        for metric in vars(kind(CollectorRegistry())).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                for end in ENDS[family.type]:
                    le = {"le"} if end == "_bucket" else set()
                    found[family.name + end] = set(metric._labelnames) | le
    return found


EXPORTED = exported()


def rules(case="production"):
    (found,) = rendered(case).of("PrometheusRule")
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def queries():
    """Yield (where, expression, {recorded name: labels}) of everything that asks Prometheus."""
    recorded = {
        rule["record"]: groupings(rule["expr"]) | set(rule["labels"])
        for rule in rules()
        if "record" in rule
    }
    for case in ("production", "monitored"):
        for rule in rules(case):
            yield f"{case}: {rule.get('alert', rule.get('record'))}", rule["expr"], recorded
    for case in ("keda", "production-gpu"):
        for found in rendered(case).of("ScaledObject"):
            for trigger in found["spec"]["triggers"]:
                yield found["metadata"]["name"], trigger["metadata"]["query"], recorded
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"], recorded


@pytest.mark.parametrize(("where", "expression", "recorded"), list(queries()))
def test_every_query_names_what_there_is(where, expression, recorded):
    """Metrics by their names in /metrics, labels by those that they have."""
    found = selectors(expression)
    assert found, where
    known = EXPORTED | recorded
    of_any = set(TARGET)
    for metric, labels in found:
        assert metric in known, f"{where}: nobody exports {metric}"
        assert set(labels) <= known[metric] | TARGET, f"{where}: {metric} has no such label"
        of_any |= known[metric]
        if "le" in labels:
            assert float(labels["le"]) in SECONDS_BUCKETS, where
    assert groupings(expression) <= of_any, where


def test_values_of_labels_are_those_that_occur():
    """A query for a value that is never set would be silent for ever."""
    from services.router.service import RouterService
    from services.shared.pb import encoder_pb2, router_pb2

    methods = {
        method.name
        for file in (encoder_pb2, router_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    source = (ROOT / "services" / "router" / "vector_stores" / "stores_http.py").read_text()
    assert RouterService.name == "router"
    assert '_STORE = "/v1/vector_stores", "/v1/vector_stores/{vector_store_id}"' in source
    methods |= {"POST /v1/embeddings", "POST /v1/vector_stores/vector_store_id/search"}
    methods |= {"POST /v1/rerank"}
    known = {
        "method": methods,
        "lane": {"interactive", "bulk"},
        "outcome": {code.name for code in grpc.StatusCode} | {"failed", "completed", "done"},
        "state": {"queued", "running", "paused", "succeeded", "failed", "cancelled"},
        "statistic": {"mean", "lower", "upper"},
        "result": {"hit", "miss"},
        "reason": {"invalid_data"},
        "side": {"before", "after"},
    }
    for where, expression, _ in queries():
        for _, labels in selectors(expression):
            for label, value in labels.items():
                if label in known and not value.startswith("$"):
                    assert set(value.split("|")) <= known[label], f"{where}: {label}={value}"


def test_scalers_by_custom_metrics_name_a_real_one():
    """The HorizontalPodAutoscaler asks a metrics adapter by the metric's own name."""
    names = {
        metric["pods"]["metric"]["name"]
        for found in rendered("hpa").of("HorizontalPodAutoscaler")
        for metric in found["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert names == {"matryoshka_encoder_queued_tokens"}
    assert names <= set(EXPORTED)


def test_monitors_put_the_labels_there_that_queries_use():
    """Alerts select by release; pools are told apart by a label of the pods."""
    made = rendered("production")
    for found in made.of("PodMonitor"):
        (endpoint,) = found["spec"]["podMetricsEndpoints"]
        assert {one["targetLabel"] for one in endpoint["relabelings"]} == {
            "release", "pool", "serves",
        }  # fmt: skip
        assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    for where, expression, _ in queries():
        for metric, labels in selectors(expression):
            assert labels.get("release") in (RELEASE, "$release"), f"{where}: {metric}"


def test_dashboards_are_there_for_each_service_and_are_grafanas():
    """Encoder, router with recall, trainer; unique ids, panels with titles that do not overlap."""
    assert {path.stem for path in DASHBOARDS} == {"encoder", "router", "trainer"}
    uids = set()
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        uids.add(board["uid"])
        assert {one["name"] for one in board["templating"]["list"]} == {
            "datasource", "namespace", "release",
        }  # fmt: skip
        cells = [
            (x, y)
            for panel in board["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert all(panel["title"] and panel.get("description") for panel in board["panels"])
    assert len(uids) == 3
    made = rendered("production").of("ConfigMap")
    shown = {
        name: json.loads(text)
        for found in made
        for name, text in found["data"].items()
        if name.endswith(".json")
    }
    assert shown == {path.name: json.loads(path.read_text()) for path in DASHBOARDS}
    assert "recall" in json.dumps(shown["router.json"])


def test_the_document_explains_every_alert_and_no_other():
    """docs/monitoring.md says of each what it means and what to do."""
    text = (ROOT / "docs" / "monitoring.md").read_text()
    explained = re.findall(r"^### (Matryoshka\w+)$", text, re.MULTILINE)
    alerts = [rule["alert"] for rule in rules() if "alert" in rule]
    assert sorted(explained) == sorted(alerts)
    assert len(set(alerts)) == len(alerts)
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert {"summary", "description"} == set(rule["annotations"])
