"""Who may call whom: in the network, at the Kubernetes API, and from outside by one URL."""

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry

from services.encoder.service import EncoderService
from services.encoder.settings import EncoderSettings
from services.router.service import RouterService
from services.router.settings import RouterSettings
from services.trainer.jobs import kubernetes, manifest
from services.trainer.service import TrainerService
from services.trainer.settings import TrainerSettings
from tests.chart.chart import CASES, render, rendered

JOBS_POD = manifest.job_manifest(
    "job-1", "/data/job-1",
    manifest.PodKind(image="i", claim="c", data_dir="/data", nodes=2, devices=1, gpus=0, cpu="1",
                     memory="1Gi", queue="", stop_s=10.0),
)["spec"]["template"]  # fmt: skip


def pods_of(made):
    """Return {component: labels}, training pods among them."""
    found = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["labels"]
        for _, pod, _ in made.pods()
    }
    return found | {"training": JOBS_POD["metadata"]["labels"]}


BOTH = ("Ingress", "Egress")


def allowed(made, source, target, port, pods, sides=BOTH):
    """Say whether policies let `source` call `target`, by how Kubernetes adds them up."""
    return all(
        any(
            _matches(rule, "from" if side == "Ingress" else "to", pods[other], port)
            for policy in _policies_of(made, pods[own], side)
            for rule in policy["spec"][side.lower()]
        )
        for side, own, other in (("Ingress", target, source), ("Egress", source, target))
        if side in sides
    )


def _policies_of(made, labels, side):
    return [
        policy
        for policy in made.of("NetworkPolicy")
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        and side in policy["spec"]["policyTypes"]
    ]


def _matches(rule, field, labels, port):
    ports = rule.get("ports")
    if ports is not None and port not in [one["port"] for one in ports]:
        return False
    peers = rule.get(field)
    return peers is None or any(
        peer["podSelector"]["matchLabels"].items() <= labels.items()
        for peer in peers
        if set(peer) == {"podSelector"}
    )


@pytest.mark.parametrize("case", [case for case in CASES if case != "encoder-only"])
def test_every_pod_is_closed_both_ways(case):
    """Each has a policy for what comes in and for what goes out, and reaches DNS."""
    made = rendered(case)
    pods = pods_of(made)
    if "jobs" not in case and not case.startswith("production"):
        del pods["training"]
    for component, labels in pods.items():
        assert _policies_of(made, labels, "Ingress"), component
        (policy,) = _policies_of(made, labels, "Egress")
        assert {"protocol": "UDP", "port": 53} in policy["spec"]["egress"][0]["ports"]


def test_exactly_the_named_flows_are_open():
    """Within the release: what the services' settings need, the test pod, and no other."""
    made = rendered("jobs")
    pods = pods_of(made)
    ports = [6333, 6334, 6335, 8000, 8001, 8002, 9000, 9001, 9002, 29400]

    def flows(sides):
        return {
            (source, target, port)
            for source in pods
            for target in pods
            for port in ports
            if allowed(made, source, target, port, pods, sides)
        }

    open_flows = flows(BOTH)
    assert flows(["Ingress"]) == open_flows, "a door that nobody uses is a door"
    # Anything between the pods of jobs: torch and NCCL choose ports as they like.
    training = {("training", "training", port) for port in ports}
    # Beside the routers' own database and files, which may be anywhere: see `external`.
    assert open_flows == training | {
        ("router", "encoder", 9000), ("trainer", "encoder", 9000),
        ("router", "trainer", 9002), ("trainer", "router", 9001),
        ("router", "qdrant", 6333), ("router", "qdrant", 6334), ("qdrant", "qdrant", 6335),
        ("test", "encoder", 8000), ("test", "router", 8001), ("test", "trainer", 8002),
    }  # fmt: skip


def test_only_who_is_named_comes_in_from_outside():
    """Callers at HTTP and gRPC, Prometheus at the port with the metrics; nobody by default."""
    outside = [
        peer
        for policy in rendered("default").of("NetworkPolicy")
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if set(peer) != {"podSelector"}
    ]
    assert outside == []
    policy = rendered("production").one("NetworkPolicy", "-router")
    by_namespace = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: {
            one["port"] for one in rule["ports"]
        }
        for rule in policy["spec"]["ingress"]
        if "namespaceSelector" in rule["from"][0]
    }
    assert by_namespace == {"ingress-nginx": {8001, 9001}, "monitoring": {8001}}


def test_an_encoder_reaches_nothing_but_dns():
    """A text that it reads can go nowhere."""
    policy = rendered("production").one("NetworkPolicy", "-encoder")
    assert len(policy["spec"]["egress"]) == 1


def test_traces_reach_the_collector_from_everybody_who_makes_them():
    """The services and the pods of their jobs, where one is named; nobody else."""
    made = rendered("jobs")
    senders = {
        policy["metadata"]["labels"]["app.kubernetes.io/component"]
        for policy in made.of("NetworkPolicy")
        for rule in policy["spec"]["egress"]
        if [one["port"] for one in rule.get("ports", ())] == [4317]
    }
    assert senders == {"encoder", "router", "trainer", "training"}


VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}


def test_the_trainers_role_is_what_its_launcher_asks(tmp_path):
    """A job's whole life at an API that notes what it is asked: these verbs and no others."""
    asked: set[tuple[str, str]] = set()
    jobs: dict[str, dict] = {}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            resource = "jobs" if "/jobs" in self.path else "services"
            asked.add((resource, VERBS[self.command]))
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            name = self.path.rsplit("/", 1)[-1]
            code, answer = 200, {}
            if resource == "jobs" and self.command == "POST":
                jobs["job-1"] = json.loads(body)
            elif resource == "jobs" and self.command == "GET":
                code, answer = (200, jobs[name]) if name in jobs else (404, {})
            elif resource == "jobs" and self.command == "PATCH":
                jobs[name]["spec"] |= json.loads(body)["spec"]
            text = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_):
            """Say nothing."""

    async def live(url):
        cluster = kubernetes.Cluster(url, "ns", None, None)
        kind = manifest.PodKind(image="i", claim="c", data_dir=tmp_path, nodes=2, devices=1, gpus=0,
                                cpu="1", memory="1Gi", queue="", stop_s=1.0)  # fmt: skip
        launcher = kubernetes.KubernetesLauncher(cluster, kind, look_s=0.01)
        running = asyncio.create_task(launcher.run(tmp_path / "job-1"))
        while not jobs:
            await asyncio.sleep(0.01)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await launcher.forget("job-1")
        await cluster.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        asyncio.run(live(f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    role = rendered("jobs").one("Role")
    may = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert may == asked
    (subject,) = rendered("jobs").one("RoleBinding")["subjects"]
    trainer = rendered("jobs").one("Deployment", "-trainer")
    assert subject["name"] == trainer["spec"]["template"]["spec"]["serviceAccountName"]
    assert rendered("default").of("Role") == []


def routes_of(tmp_path):
    """Return {path: service} of the HTTP routes that the real services have."""
    registry = CollectorRegistry
    services = [
        EncoderService(EncoderSettings(data_dir=tmp_path), registry()),
        RouterService(RouterSettings(data_dir=tmp_path), registry()),
        TrainerService(TrainerSettings(data_dir=tmp_path), registry(), serves_files=False),
    ]
    return {route.path: service.name for service in services for route in service.routes()}


def route(paths, exact, wanted):
    """Return the backend of the longest prefix, as Ingress and HTTPRoute choose."""
    fitting = [
        path
        for path in paths
        if wanted == path or (path not in exact and wanted.startswith(f"{path}/"))
    ]
    return paths[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize("case", ["plain", "gateway", "production-plain"])
def test_one_url_leads_every_route_to_its_service(case, tmp_path):
    """Each HTTP route of the real services is reached, and neither probes nor metrics are."""
    made = rendered(case)
    ports = {8000: "encoder", 8001: "router", 8002: "trainer"}
    paths, types = {}, {}
    for found in made.of("Ingress"):
        for rule in found["spec"]["rules"][0]["http"]["paths"]:
            types[rule["path"]] = rule["pathType"]
            paths[rule["path"]] = rule["backend"]["service"]["name"].split("matryoshka-")[-1]
    for found in made.of("HTTPRoute"):
        for rule in found["spec"]["rules"]:
            (backend,) = rule["backendRefs"]
            path = rule["matches"][0]["path"]
            types[path["value"]] = path["type"]
            paths[path["value"]] = ports[backend["port"]]
    exact = {path for path, kind in types.items() if kind == "Exact"}
    assert exact == {"/"}, "the console's page, and nothing below it"
    real = routes_of(tmp_path)
    assert len(real) > 15
    for path, service in real.items():
        assert (route(paths, exact, path) or "").split("-")[0] == service, path
    for path in ("/metrics", "/livez", "/readyz"):
        assert route(paths, exact, path) is None
    services = {found["metadata"]["name"] for found in made.of("Service")}
    for found in made.of("Ingress"):
        for rule in found["spec"]["rules"][0]["http"]["paths"]:
            assert rule["backend"]["service"]["name"] in services


def test_grpc_has_a_host_of_its_own():
    """Each of the three services by its full name, at the pool that the router asks."""
    made = rendered("gateway")
    found = made.one("GRPCRoute")["spec"]["rules"]
    by_service = {rule["matches"][0]["method"]["service"]: rule["backendRefs"][0] for rule in found}
    assert by_service == {
        "matryoshka.v1.EncoderService": {"name": "rel-matryoshka-encoder-default", "port": 9000},
        "matryoshka.v1.RouterService": {"name": "rel-matryoshka-router", "port": 9001},
        "matryoshka.v1.TrainerService": {"name": "rel-matryoshka-trainer", "port": 9002},
    }


def test_pods_that_serve_another_pool_are_behind_its_service():
    """Bulk pods take their share of the default pool's callers, and have no Service."""
    made = rendered("keda")
    names = {found["metadata"]["name"] for found in made.of("Service")}
    assert not [name for name in names if "bulk" in name]
    selector = made.one("Service", "encoder-default")["spec"]["selector"]
    bulk = made.one("StatefulSet", "encoder-bulk")["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= bulk.items()


def test_without_a_router_files_are_the_trainers():
    """The trainer has /v1/files too, and needs it then."""
    made = render({"router": {"enabled": False}, "ingress": {"enabled": True, "host": "a.b"}})
    paths = {
        rule["path"]: rule["backend"]["service"]["name"]
        for rule in made.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    }
    assert paths["/v1/files"] == "rel-matryoshka-trainer"
    assert "/v1/vector_stores" not in paths
