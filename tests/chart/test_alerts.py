"""Alerts ring when they should and are silent when they should, by Prometheus' own evaluation."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.chart import ROOT, rendered


@pytest.fixture(scope="module")
def promtool():
    unpacked = ROOT / ".prometheus" / "usr" / "bin" / "promtool"
    found = str(unpacked) if unpacked.exists() else shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not there: `make prometheus` unpacks Debian's")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The rules as the chart makes them for `monitored`, beside the cases of alerts.yaml."""
    made = tmp_path_factory.mktemp("rules")
    spec = rendered("monitored").one("PrometheusRule")["spec"]
    (made / "rules.yml").write_text(yaml.safe_dump(spec))
    shutil.copy(Path(__file__).with_name("alerts.yaml"), made / "tests.yml")
    return made


def run(*command):
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_rules_are_prometheus_rules(promtool, folder):
    """Every expression and template parses."""
    run(promtool, "check", "rules", "--lint-fatal", folder / "rules.yml")


def test_alerts_ring_and_are_silent(promtool, folder):
    """The cases of alerts.yaml, each with samples and what must come of them."""
    run(promtool, "test", "rules", folder / "tests.yml")


def test_every_alert_has_a_case_in_which_it_rings():
    """An expression that can never be true would be a false comfort."""
    cases = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
    ring = {
        case["alertname"]
        for group in cases
        for case in group["alert_rule_test"]
        if case.get("exp_alerts")
    }
    silent = {
        case["alertname"]
        for group in cases
        for case in group["alert_rule_test"]
        if not case.get("exp_alerts")
    }
    spec = rendered("monitored").one("PrometheusRule")["spec"]
    alerts = {rule["alert"] for one in spec["groups"] for rule in one["rules"] if "alert" in rule}
    assert ring == alerts
    assert silent == alerts
