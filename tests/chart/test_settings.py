"""What the chart tells the services is what these understand, and its times fit theirs."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from deploy.values_schema import SET_BY_THE_CHART, SHARED
from services.encoder.settings import EncoderSettings
from services.router.settings import RouterSettings
from services.shared import channel
from services.shared.served import FILENAME
from services.trainer.jobs import manifest
from services.trainer.jobs.placement import Placement, read_node_selector, read_tolerations
from services.trainer.settings import TrainerSettings
from tests.chart.chart import CASES, rendered, values

SETTINGS = {"encoder": EncoderSettings, "router": RouterSettings, "trainer": TrainerSettings}
# Of other makers' programs: a cache's place, threads, and what a user adds in `placed`.
FOREIGN = {
    "HOME", "HF_HOME", "HF_HUB_OFFLINE", "MPLCONFIGDIR", "NUMBA_CACHE_DIR",
    "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "HTTPS_PROXY",
}  # fmt: skip


class Secret(str):
    """What a file of a mounted Secret holds, here: anything that all its readers take."""


SECRET = Secret("postgresql://user:secret@db/matryoshka")


def services_of(case):
    """Yield (service, its pod's spec, {variable or its file: value}) of each that runs."""
    for _, pod, _ in rendered(case).pods():
        (container,) = pod["spec"]["containers"]
        if container["name"] in SETTINGS:
            env = {one["name"]: one.get("value", "") for one in container["env"]}
            assert len(env) == len(container["env"]), "a variable is set twice"
            files = [
                item["path"].upper()
                for volume in pod["spec"]["volumes"]
                for source in volume.get("projected", {}).get("sources", ())
                for item in source["secret"]["items"]
            ]
            assert not set(files) & set(env)
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            told = env.get(f"MATRYOSHKA_{container['name'].upper()}_SECRETS_DIR")
            assert told == mounts.get("secrets")
            assert bool(files) == (told is not None)
            env |= dict.fromkeys(files, SECRET)
            yield container["name"], pod["spec"], env


def read(service, env, monkeypatch):
    """Read settings as the service itself does: a name or value that is wrong is refused."""
    with monkeypatch.context() as patch, TemporaryDirectory() as folder:
        for name, value in env.items():
            if isinstance(value, Secret):
                (Path(folder) / name.lower()).write_text(value)
            elif name.endswith("_SECRETS_DIR"):
                patch.setenv(name, folder)
            else:
                patch.setenv(name, value)
        return SETTINGS[service].read()


@pytest.fixture(autouse=True)
def _only_the_charts_variables(monkeypatch):
    monkeypatch.delenv("MATRYOSHKA_ENCODER_ENGINES_DIR", raising=False)


@pytest.mark.parametrize("case", CASES)
def test_every_variable_is_a_setting_of_its_service(case, monkeypatch):
    """By name and by value: the service reads them without a word."""
    for service, _, env in services_of(case):
        fields = {f"MATRYOSHKA_{service.upper()}_{name.upper()}" for name in
                  SETTINGS[service].model_fields}  # fmt: skip
        assert {name for name in env if name not in FOREIGN} <= fields
        read(service, env, monkeypatch)


def test_what_the_chart_keeps_to_itself_it_sets():
    """A field that `settings` refuses is set from other values, in some case at least."""
    for service, kind in SETTINGS.items():
        prefix = f"MATRYOSHKA_{service.upper()}_"
        seen = {
            name.removeprefix(prefix).lower()
            for case in CASES
            for found, _, env in services_of(case)
            for name in env
            if found == service
        }
        # HTTP's callers come through an Ingress, which shows no certificate.
        seen.add("tls_http_client_ca")
        assert seen >= SHARED | SET_BY_THE_CHART[kind], service
        assert set(kind.model_fields) >= SHARED | SET_BY_THE_CHART[kind], service


@pytest.mark.parametrize("case", CASES)
def test_a_pod_is_not_killed_while_it_stops_in_order(case, monkeypatch):
    """drain_s + grace_s, and what jobs need to save, are less than the pod's grace period."""
    for service, pod, env in services_of(case):
        settings = read(service, env, monkeypatch)
        stopping = settings.drain_s + settings.grace_s
        if service == "trainer":
            # The launcher of Jobs waits for their pods and, as long again, for the API.
            stopping += settings.stop_s + 30 * (settings.launcher == "kubernetes")
        assert stopping < pod["terminationGracePeriodSeconds"]
        probe = pod["containers"][0]["readinessProbe"]
        assert settings.drain_s >= probe["periodSeconds"] * probe["failureThreshold"], (
            "it would refuse calls before it is seen as not ready"
        )


@pytest.mark.parametrize("case", CASES)
def test_the_next_pod_waits_until_callers_have_found_the_new_one(case):
    """Twice as long as their channels take to look names up and to connect again, at least."""
    looks = [value for name, value in channel.balanced("a,b") if name.endswith("_ms")]
    assert len(looks) == 2
    found = [one for one in (*rendered(case).of("Deployment"), *rendered(case).of("StatefulSet"))
             if one["metadata"]["labels"]["app.kubernetes.io/component"] in SETTINGS]  # fmt: skip
    assert found
    assert all(one["spec"]["minReadySeconds"] >= 2 * sum(looks) / 1000 for one in found)


@pytest.mark.parametrize("case", CASES)
def test_probes_and_services_ask_at_the_ports_that_are_listened_on(case, monkeypatch):
    """Ports of containers, probes and Services are those of the settings."""
    made = rendered(case)
    for service, pod, env in services_of(case):
        settings = read(service, env, monkeypatch)
        (container,) = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = ports.pop("probes")
        assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
        assert probes == settings.probe_port
        assert str(settings.host) == "0.0.0.0"
        assert container["args"] == ["serve", service]
        assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "probes"}
        if settings.tls_cert is None:
            assert container["readinessProbe"]["grpc"] == {"port": settings.grpc_port}
        else:
            assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "probes"}
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "probes"}
        for found in made.of("Service"):
            if found["metadata"]["labels"]["app.kubernetes.io/component"] == service:
                assert {p["name"]: p["port"] for p in found["spec"]["ports"]} == ports


@pytest.mark.parametrize("case", CASES)
def test_addresses_in_settings_are_services_of_the_release(case, monkeypatch):
    """Each names a headless Service, so that gRPC sees every pod, and its port."""
    made = rendered(case)
    known = {
        f"dns:///{found['metadata']['name']}.{found['metadata']['namespace']}.svc:{port['port']}"
        for found in made.of("Service", "-headless")
        for port in found["spec"]["ports"]
        if port["name"] == "grpc"
    }
    for service, _, env in services_of(case):
        settings = read(service, env, monkeypatch)
        for field in type(settings).model_fields:
            if field.endswith("_address") and field in settings.model_fields_set:
                assert getattr(settings, field) in known


@pytest.mark.parametrize("case", CASES)
def test_folders_that_are_written_are_volumes(case, monkeypatch):
    """The root is read-only: data lie on a volume, and all data of a pod that lasts on a claim."""
    for service, pod, env in services_of(case):
        settings = read(service, env, monkeypatch)
        mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert {"/tmp", str(settings.data_dir)} <= set(mounts)
        assert not mounts[str(settings.data_dir)].get("readOnly")


def test_jobs_find_the_trainers_folders(monkeypatch):
    """Pods of Jobs mount the claim that the trainer mounts, at the same place, as the same user."""
    for _, pod, env in (found for found in services_of("jobs") if found[0] == "trainer"):
        settings = read("trainer", env, monkeypatch)
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "state"]
        assert claims["state"] == settings.kubernetes_claim
        assert mount["mountPath"] == str(settings.data_dir)
        assert "subPath" not in mount, "Jobs mount the whole claim"
        assert settings.kubernetes_namespace == "ns"
        assert (settings.kubernetes_nodes, settings.kubernetes_queue) == (4, "team-a")
        kind = manifest.PodKind(
            image=settings.kubernetes_image, claim=settings.kubernetes_claim,
            data_dir=settings.data_dir, nodes=1, devices=1, gpus=0, cpu="1", memory="1Gi",
            queue="", stop_s=settings.stop_s,
            placement=Placement(
                node_selector=read_node_selector(settings.kubernetes_node_selector),
                tolerations=read_tolerations(settings.kubernetes_tolerations),
                runtime_class=settings.kubernetes_runtime_class,
                priority_class=settings.kubernetes_priority_class,
            ),
        )  # fmt: skip
        job = manifest.job_manifest("job-1", settings.data_dir / "jobs" / "job-1", kind)
        job_pod = job["spec"]["template"]["spec"]
        given = values("jobs")["trainer"]["jobs"]
        for field in ("nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"):
            assert job_pod[field] == given[field]
        for field in ("runAsUser", "fsGroup"):
            assert job_pod["securityContext"][field] == pod["securityContext"][field]


@pytest.mark.parametrize("case", CASES)
def test_router_and_trainer_see_the_same_files(case, monkeypatch):
    """What is uploaded at one URL can be trained on, in the database or on the shared volume."""
    found = {service: read(service, env, monkeypatch) for service, _, env in services_of(case)}
    if {"router", "trainer"} <= set(found):
        router, trainer = found["router"], found["trainer"]
        assert trainer.files_database_url == router.database
        assert (trainer.files_url or str(trainer.data_dir / "files")) == router.files_place


def test_with_tls_everybody_shows_and_asks_for_certificates(monkeypatch):
    """Both wires are encrypted, and gRPC's callers are asked for theirs, by files of one Secret."""
    for service, pod, env in services_of("tls"):
        settings = read(service, env, monkeypatch)
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "tls"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == "tls"]
        assert volume["secret"] == {"secretName": "certificates"}, "whole, so that it is renewed"
        files = [settings.tls_cert, settings.tls_key, settings.tls_grpc_client_ca]
        if service != "encoder":
            files.append(settings.tls_peer_ca)
        assert {str(file.parent) for file in files} == {mount["mountPath"]}
        assert {file.name for file in files} == {"tls.crt", "tls.key", "ca.crt"}
    for found in rendered("tls").of("PodMonitor"):
        (endpoint,) = found["spec"]["podMetricsEndpoints"]
        assert endpoint["scheme"] == "https"


@pytest.mark.parametrize("case", CASES)
def test_the_encoders_that_a_trainer_promotes_to_follow_it(case, monkeypatch):
    """Those behind its address, and no others: the file lies where the trainer writes it."""
    found = {service: read(service, env, monkeypatch) for service, _, env in services_of(case)}
    trainer = found.get("trainer")
    for _, pod, _ in rendered(case).pods():
        (container,) = pod["spec"]["containers"]
        if container["name"] != "encoder":
            continue
        env = {one["name"]: one.get("value") for one in container["env"]}
        serves = pod["metadata"]["labels"]["matryoshka/serves"]
        is_promoted_to = trainer is not None and f"-{serves}-headless." in trainer.encoder_address
        is_mounted = "/var/lib/matryoshka" in {m["mountPath"] for m in container["volumeMounts"]}
        expected = str(trainer.data_dir / FILENAME) if is_promoted_to and is_mounted else None
        assert env.get("MATRYOSHKA_ENCODER_SERVED_FILE") == expected
