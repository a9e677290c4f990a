"""A release's life, by the real Helm engine, at an API that refuses what Kubernetes refuses."""

import base64
import shutil

import helm_python as helm
import pytest

from tests.chart.api_server import ApiServer
from tests.chart.chart import CHART, NAMESPACE, RELEASE, RELEASED, rendered, values


@pytest.fixture
def api():
    with ApiServer() as running:
        yield running


@pytest.fixture
def helm_there(api):
    config = helm.Config(
        kubeconfig_content=api.kubeconfig, namespace=NAMESPACE, storage_driver="memory",
        burst_limit=1000, qps=1000,
    )  # fmt: skip
    with config:
        yield config


def keys(api):
    return {
        f"{name}/{key}": base64.b64decode(value).decode()
        for (kind, name), found in api.objects.items()
        if kind == "Secret"
        for key, value in found["data"].items()
    }


def specs(api):
    return {
        key: (found.get("spec"), found.get("data"), found["metadata"].get("labels"))
        for key, found in api.objects.items()
    }


def test_install_upgrade_roll_back_and_uninstall(api, helm_there):
    """Objects come, change, come back as they were, and go; keys and volumes stay."""
    installed = helm_there.install(str(CHART), RELEASE, {})
    assert installed["status"] == "deployed"
    assert "helm test" in installed["notes"]
    wanted = {(found["kind"], found["metadata"]["name"]) for found in rendered("default").objects
              if "helm.sh/hook" not in found["metadata"].get("annotations", {})}  # fmt: skip
    assert api.names() == wanted
    first, made = specs(api), keys(api)
    secret = [key for name, key in made.items() if not name.endswith(".jsonl")]
    assert len(secret) == 6
    assert all(len(key) == 48 for key in secret)
    assert len(set(secret)) == 6

    upgraded = helm_there.upgrade(
        str(CHART),
        RELEASE,
        {"trainer": {"enabled": False}, "router": {"settings": {"max_limit": 9}}},
    )
    assert upgraded["revision"] == 2
    assert ("Deployment", f"{RELEASE}-matryoshka-trainer") not in api.names()
    assert keys(api) == made, "callers' keys must outlive an upgrade"
    router = api.objects["Deployment", f"{RELEASE}-matryoshka-router"]
    env = router["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MATRYOSHKA_ROUTER_MAX_LIMIT", "value": "9"} in env

    helm_there.rollback(RELEASE, version=1)
    assert specs(api) == first

    helm_there.uninstall(RELEASE)
    kept = {kind for kind, _ in api.names()}
    assert kept == {"Secret", "PersistentVolumeClaim"}, "what cannot be made again is kept"
    helm_there.install(str(CHART), RELEASE, {})
    assert keys(api) == made, "and found again"


@pytest.mark.parametrize("case", ["default", "one-machine", "production-gpu"])
def test_a_release_becomes_the_next_one_in_place(api, helm_there, tmp_path, case):
    """From the last release's chart to this one, as a newer version: nothing fixed changes, keys
    stay, and each Service finds the old pods beside the new ones, at the same ports."""
    given = values(case)
    helm_there.install(str(RELEASED), RELEASE, given)
    newer = shutil.copytree(CHART, tmp_path / "matryoshka")
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("0.1.0", "0.2.0"))
    names, made = api.names(), keys(api)
    doors, pods = specs_of(api, "Service"), labels_of_pods(api)
    helm_there.upgrade(str(newer), RELEASE, given)
    assert keys(api) == made
    assert api.names() >= names
    for name, door in doors.items():
        now = specs_of(api, "Service")[name]
        assert (now["selector"], now["ports"]) == (door["selector"], door["ports"])
        for labels in (pods, labels_of_pods(api)):
            assert any(now["selector"].items() <= one.items() for one in labels)
    if case.startswith("production"):
        # A new pod is ready before an old one goes: searches are answered all the while.
        router = api.objects["Deployment", "matryoshka-router"]["spec"]
        assert router["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert router["template"]["spec"]["containers"][0]["image"].endswith(":0.2.0")


def specs_of(api, kind):
    return {name: found["spec"] for (of, name), found in api.objects.items() if of == kind}


def labels_of_pods(api):
    return [
        spec["template"]["metadata"]["labels"]
        for kind in ("Deployment", "StatefulSet")
        for spec in specs_of(api, kind).values()
    ]


def test_a_change_of_what_is_fixed_is_refused(api, helm_there):
    """The emulated API says no where Kubernetes would, so the test above could fail."""
    helm_there.install(str(CHART), RELEASE, {})
    with pytest.raises(helm.HelmError, match="volumeClaimTemplates may not change"):
        helm_there.upgrade(str(CHART), RELEASE, {"qdrant": {"persistence": {"size": "1Ti"}}})
