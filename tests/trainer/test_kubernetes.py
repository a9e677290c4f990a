"""Jobs as Kubernetes Jobs: real processes behind an API that refuses what Kubernetes refuses."""

import asyncio
import contextlib
from pathlib import Path

import pytest

pytest.importorskip("kubernetes_validate")

import kubernetes_validate

from services.shared.errors import ServiceError
from services.shared.settings import SettingsError
from services.trainer.jobs.kubernetes import Cluster, KubernetesLauncher
from services.trainer.jobs.launcher import environment
from services.trainer.jobs.manifest import PodKind, job_manifest, service_manifest
from services.trainer.jobs.placement import Placement
from services.trainer.jobs.spec import failure_path, result_path
from services.trainer.settings import TrainerSettings
from tests.trainer import cluster as emulated
from tests.trainer.conftest import make_job, start_job, weights
from tests.trainer.test_run import same

JOB = "job-" + "1" * 32
PLACED = Placement(
    node_selector={"accelerator": "h200"},
    tolerations=(
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "value": "8", "effect": "NoExecute", "tolerationSeconds": 300},
    ),
    runtime_class="nvidia",
    priority_class="bulk",
)
OPTIONS = {"method": "full", "steps": 150, "batch_size": 8}


def kind(tmp_path, **more):
    values = {
        "image": "registry.example/matryoshka:1", "claim": "data", "data_dir": tmp_path,
        "nodes": 1, "devices": 1, "gpus": 0, "cpu": "2", "memory": "8Gi", "queue": "",
        "stop_s": 10.0,
    } | more  # fmt: skip
    return PodKind(**values)


@pytest.fixture
def api():
    with emulated.Cluster("secret") as running:
        yield running


@pytest.fixture
async def launcher(api, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    cluster = Cluster(api.url, "ml", tmp_path / "token", None)
    yield KubernetesLauncher(cluster, kind(tmp_path), look_s=0.05)
    await cluster.close()


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize(
    "more",
    [{}, {"nodes": 4, "devices": 8, "gpus": 8, "queue": "team-a"}, {"placement": PLACED}],
    ids=["plain", "many", "placed"],
)
def test_manifests_are_what_kubernetes_takes(tmp_path, version, more):
    """By the schemas of several versions, with nothing that these do not know."""
    job = job_manifest(JOB, tmp_path / JOB, kind(tmp_path, **more))
    kubernetes_validate.validate(job, version, strict=True)
    kubernetes_validate.validate(service_manifest(JOB), version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"specs": {}}, version, strict=True)


def test_several_nodes_find_each_other_and_kueue_starts_them(tmp_path):
    """Indexed pods under the service's name, GPUs and the queue's label."""
    many = kind(tmp_path, nodes=4, devices=8, gpus=8, queue="team-a")
    job = job_manifest(JOB, tmp_path / JOB, many)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["suspend"], spec["completionMode"]) == (True, "Indexed")
    assert (spec["completions"], spec["parallelism"]) == (4, 4)
    service = service_manifest(JOB)
    assert pod["subdomain"] == service["metadata"]["name"]
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (container,) = pod["containers"]
    assert f"{JOB}-0.{JOB}:29400" in container["command"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert pod["automountServiceAccountToken"] is False
    alone = job_manifest(JOB, tmp_path / JOB, kind(tmp_path))
    assert not alone["spec"]["suspend"]
    codes = [rule.get("onExitCodes", {}).get("values") for rule in
             alone["spec"]["podFailurePolicy"]["rules"]]  # fmt: skip
    assert codes == [None, [74, 75], [1]]


def test_a_process_runs_as_many_threads_as_its_pod_may_have_cores(tmp_path, monkeypatch):
    """A node has more; several processes of a pod get one thread each, by torchrun."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    cores = {"resource": "limits.cpu", "divisor": "1"}
    for devices, is_told in ((1, True), (2, False)):
        job = job_manifest(JOB, tmp_path / JOB, kind(tmp_path, devices=devices))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        told = [one for one in container["env"] if one["name"] == "OMP_NUM_THREADS"]
        threads = {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": cores}}
        assert told == ([threads] if is_told else [])
        assert ("OMP_NUM_THREADS" in environment(devices)) == is_told


def test_pods_go_where_they_are_told(tmp_path):
    """Node labels, taints, runtime and priority as given; nothing where nothing is."""
    job = job_manifest(JOB, tmp_path / JOB, kind(tmp_path, placement=PLACED))
    pod = job["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == PLACED.node_selector
    assert pod["tolerations"] == list(PLACED.tolerations)
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "bulk")
    plain = job_manifest(JOB, tmp_path / JOB, kind(tmp_path))["spec"]["template"]["spec"]
    assert not {"nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"} & set(plain)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("node_selector", "gpu=true", "NODE_SELECTOR must be JSON, got 'gpu=true'"),
        ("node_selector", '["gpu"]', "NODE_SELECTOR must be a JSON object of labels"),
        ("node_selector", '{"gpu": true}', "'gpu': True can be none"),
        ("node_selector", '{"a b": "c"}', "'a b': 'c' can be none"),
        ("tolerations", "{}", "TOLERATIONS must be a JSON list of tolerations, such as"),
        ("tolerations", '["gpu"]', "in the 1. there is no object"),
        ("tolerations", '[{"taint": "gpu"}]', "in the 1. there is 'taint', which is not one of"),
        ("tolerations", '[{"key": "a", "operator": "In"}]', "operator must be Equal or Exists"),
        (
            "tolerations",
            '[{"operator": "Exists"}, {"key": "a", "operator": "Exists", "value": "b"}]',
            "in the 2. value must be left out",
        ),
        ("tolerations", '[{"value": "b"}]', "key may be left out only where"),
        ("tolerations", '[{"key": "a", "effect": "Never"}]', "effect must be one of NoSchedule"),
        ("tolerations", '[{"key": "a", "tolerationSeconds": "5"}]', "must be a whole number"),
        ("tolerations", '[{"key": "a", "tolerationSeconds": 5}]', "needs the effect NoExecute"),
        ("runtime_class", "Nvidia Runtime", "RUNTIME_CLASS must be a name of Kubernetes"),
        ("priority_class", "-", "PRIORITY_CLASS must be a name of Kubernetes"),
    ],
)
def test_a_place_that_no_pod_can_have_ends_the_start(field, value, sentence):
    """One sentence says what would be accepted."""
    with pytest.raises(SettingsError, match="MATRYOSHKA_TRAINER_KUBERNETES_") as caught:
        TrainerSettings.read(**{f"kubernetes_{field}": value})
    assert sentence in str(caught.value)


async def test_a_job_survives_a_lost_pod_and_a_pause(
    api, launcher, tmp_path, tiny_model, tiny_pairs
):
    """Killed, suspended and resumed, it ends in the weights of an undisturbed run."""
    folder = make_job(tmp_path / JOB, tiny_model, tiny_pairs, **OPTIONS)
    running = asyncio.create_task(launcher.run(folder))
    await checkpoint(folder, 10)
    api.wait_for_pod(JOB).kill()
    await checkpoint(folder, 30)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert not api.pods[JOB], "no pod is left when it is paused"
    assert api.objects["jobs", JOB]["spec"]["suspend"] is True
    assert not result_path(folder).exists()
    assert await launcher.run(folder) == 0
    await launcher.forget(JOB)
    calm = make_job(tmp_path / "calm", tiny_model, tiny_pairs, **OPTIONS)
    assert start_job(calm).wait() == 0
    assert same(weights(folder / "model"), weights(calm / "model"))
    assert [made[0] for made in api.made] == ["jobs"], "one Job, whatever happened"


async def test_a_service_that_comes_back_finds_its_job(
    api, launcher, tmp_path, tiny_model, tiny_pairs
):
    """Nothing is started twice; an API that is away for a moment does no harm."""
    folder = make_job(tmp_path / JOB, tiny_model, tiny_pairs, **OPTIONS)
    first, second = (asyncio.create_task(launcher.run(folder)) for _ in range(2))
    await checkpoint(folder, 5)
    api.is_down = True
    await asyncio.sleep(0.3)
    api.is_down = False
    done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert done.pop().result() == 0
    second.cancel()
    first.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert result_path(folder).exists()


async def test_a_job_that_cannot_succeed_fails_at_once(
    api, launcher, tmp_path, tiny_model, tiny_pairs
):
    """Its process says so by its exit code; it is not started again."""
    folder = make_job(tmp_path / JOB, tiny_model, tiny_pairs, **OPTIONS)
    (folder / "training.jsonl").write_text("no JSON\n")
    assert await launcher.run(folder) == 1
    assert failure_path(folder).exists()


async def test_what_the_cluster_refuses_is_said(api, launcher, tmp_path, tiny_model, tiny_pairs):
    """A token without the right, in the cluster's own words; the token is not among them."""
    folder = make_job(tmp_path / JOB, tiny_model, tiny_pairs, **OPTIONS)
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(ServiceError, match=r"jobs\.batch is forbidden") as caught:
        await launcher.run(folder)
    assert "wrong" not in caught.value.message


async def checkpoint(folder: Path, step: int):
    while not any(int(p.name[5:]) >= step for p in (folder / "checkpoints").glob("step-*")):
        assert not failure_path(folder).exists()
        await asyncio.sleep(0.02)


def test_kubernetes_needs_an_image_and_a_volume():
    """Said at the start, with the names of the variables."""
    with pytest.raises(Exception, match="KUBERNETES_IMAGE and KUBERNETES_CLAIM"):
        TrainerSettings.read(launcher="kubernetes")
