"""What `helm test` runs is run here against the real services."""

import os
import re
import subprocess
import sys
import urllib.request

import pytest

from tests.chart.chart import CHART, rendered
from tests.chart.test_observability import EXPORTED
from tests.conftest import serve

SMOKE = CHART / "files" / "smoke.py"


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    started = serve(tmp_path_factory.mktemp("smoke"), "up",
        MATRYOSHKA_UP_API_KEY="the-key", MATRYOSHKA_ENCODER_PRECISION="float32",
    )  # fmt: skip
    yield started
    assert started.stop() == 0


def smoke(tmp_path, key, **environment):
    (tmp_path / "api-key").write_text(key)
    environment["API_KEY_FILE"] = str(tmp_path / "api-key")
    return subprocess.run(
        [sys.executable, SMOKE], env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_it_embeds_indexes_searches_and_reads_metrics(process, tmp_path):
    """The whole of it ends well, and leaves no store and no file."""
    urls = {f"{name}_URL": process.http for name in ("ENCODER", "ROUTER", "TRAINER")}
    ended = smoke(tmp_path, "the-key", **urls)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for sentence in ("embeds a text", "the text is found", "the router shows its metrics"):
        assert sentence in ended.stdout
    for path in ("vector_stores", "files"):
        request = urllib.request.Request(
            f"{process.http}/v1/{path}", headers={"authorization": "Bearer the-key"}
        )
        with urllib.request.urlopen(request) as answer:
            assert b'"data":[]' in answer.read().replace(b" ", b"")


def test_it_fails_with_a_sentence(process, tmp_path):
    """A wrong key, for example, is told and is no success."""
    ended = smoke(tmp_path, "another", ENCODER_URL=process.http)
    assert ended.returncode == 1
    assert ended.stderr.strip() == "FAILED: the encoder embeds a text (401)"


def test_what_is_exported_live_is_what_the_registries_say(process):
    """The names that alerts and dashboards were held against are those of a real /metrics."""
    with urllib.request.urlopen(f"{process.http}/metrics") as answer:
        page = answer.read().decode()
    live = set(re.findall(r"^(matryoshka_\w+)(?:{| )", page, re.MULTILINE))
    assert len(live) > 20
    assert {name for name in live if not name.endswith("_created")} <= set(EXPORTED)


def test_the_pod_runs_it_with_the_addresses_of_the_release():
    """Every URL is of a Service, and the script is the very file."""
    made = rendered("default")
    script = made.one("ConfigMap", "-test")["data"]["smoke.py"]
    assert script.strip() == SMOKE.read_text().strip()
    services = {found["metadata"]["name"] for found in made.of("Service")}
    (container,) = made.one("Pod", "-test")["spec"]["containers"]
    urls = [one["value"] for one in container["env"] if one["name"].endswith("_URL")]
    assert len(urls) == 3
    assert {re.fullmatch(r"http://([\w-]+)\.ns\.svc:\d+", url)[1] for url in urls} <= services
    hook = made.one("Pod", "-test")["metadata"]["annotations"]
    assert hook["helm.sh/hook"] == "test"
