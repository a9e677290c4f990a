"""The bundled Qdrant: how its nodes begin, and that they find each other."""

import os
import subprocess

import pytest

from tests.chart.chart import CHART, NAMESPACE, render, rendered

START = CHART / "files" / "qdrant-start.sh"


def environment(case):
    (container,) = rendered(case).one("StatefulSet", "-qdrant")["spec"]["template"]["spec"][
        "containers"
    ]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def start(tmp_path, case, pod):
    """Run the script with a program in Qdrant's place that says how it was called."""
    stub = tmp_path / "qdrant"
    stub.write_text('#!/bin/sh\n[ "$QDRANT__SERVICE__API_KEY" = the-key ] && echo "$@"\n')
    stub.chmod(0o755)
    key = tmp_path / "api-key"
    key.write_text("the-key")
    variables = {"POD": pod, "API_KEY_FILE": str(key), "PATH": os.environ["PATH"]}
    ended = subprocess.run(
        ["bash", START], cwd=tmp_path, env=environment(case) | variables,
        capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
    return ended.stdout.split()


def test_a_node_alone_is_no_cluster(tmp_path):
    """It takes no address of others."""
    assert start(tmp_path, "default", "rel-matryoshka-qdrant-0") == []
    assert environment("default")["QDRANT__CLUSTER__ENABLED"] == "false"


@pytest.mark.parametrize(
    ("case", "number", "scheme"),
    [("cluster", 0, "http"), ("cluster", 4, "http"), ("tls", 0, "https"), ("tls", 1, "https")],
)
def test_the_first_node_begins_a_cluster_and_the_others_join_it(tmp_path, case, number, scheme):
    """By names of the headless Service, at the port of their own protocol; by TLS, if it is on."""
    made = rendered(case)
    service = made.one("Service", "-qdrant-headless")
    assert service["spec"]["publishNotReadyAddresses"] is True
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    domain = f"{service['metadata']['name']}.{NAMESPACE}.svc"
    name = made.one("StatefulSet", "-qdrant")["metadata"]["name"]
    own = ["--uri", f"{scheme}://{name}-{number}.{domain}:{ports['p2p']}"]
    first = ["--bootstrap", f"{scheme}://{name}-0.{domain}:{ports['p2p']}"]
    assert start(tmp_path, case, f"{name}-{number}") == (first if number else []) + own


def test_shards_are_replicated_as_the_values_say():
    """Of collections that do not say themselves; a budget lets one node go at a time."""
    assert environment("cluster")["QDRANT__STORAGE__COLLECTION__REPLICATION_FACTOR"] == "3"
    assert environment("production")["QDRANT__STORAGE__COLLECTION__REPLICATION_FACTOR"] == "2"
    budget = rendered("cluster").one("PodDisruptionBudget", "-qdrant")
    assert budget["spec"]["maxUnavailable"] == 1
    assert rendered("default").of("PodDisruptionBudget") == []


def test_a_node_stops_in_time():
    """What it does before it is told, and the shutdown itself, fit into its grace period."""
    for case in ("default", "cluster", "production"):
        pod = rendered(case).one("StatefulSet", "-qdrant")["spec"]["template"]["spec"]
        wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 0 < wait < pod["terminationGracePeriodSeconds"]


def component_of(pod):
    return pod["metadata"]["labels"]["app.kubernetes.io/component"]


def test_router_and_qdrant_share_a_key():
    """One Secret, made once or given."""
    for case in ("default", "existing-secrets", "search-only"):
        made = rendered(case)
        keys = {
            component_of(pod): (secret.get("secretName") or secret["name"], item["key"])
            for _, pod, _ in made.pods()
            for volume in pod["spec"]["volumes"]
            if volume["name"] == "secrets"
            for secret in [
                volume.get("secret"),
                *(source["secret"] for source in volume.get("projected", {}).get("sources", ())),
            ]
            if secret
            for item in secret["items"]
            if component_of(pod) == "qdrant" or item["path"] == "matryoshka_router_qdrant_api_key"
        }
        bundled = {"qdrant"} if made.of("StatefulSet", "-qdrant") else set()
        assert keys.keys() == {"router"} | bundled
        ((name, _),) = set(keys.values())
        own = {found["metadata"]["name"] for found in made.of("Secret")}
        assert (name in own) == (case == "default")


def test_with_a_certificate_everybody_calls_qdrant_over_tls():
    """The server, its nodes, probes, metrics and the router, by the files of one Secret."""
    made = rendered("tls")
    pod = made.one("StatefulSet", "-qdrant")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    env = environment("tls")
    assert env["QDRANT__SERVICE__ENABLE_TLS"] == env["QDRANT__CLUSTER__P2P__ENABLE_TLS"] == "true"
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
    (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "tls"]
    assert volume["secret"] == {"secretName": "qdrant-certificates"}
    for part, file in (("CERT", "tls.crt"), ("KEY", "tls.key"), ("CA_CERT", "ca.crt")):
        assert env[f"QDRANT__TLS__{part}"] == f"{mount['mountPath']}/{file}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert pod["metadata"]["annotations"]["prometheus.io/scheme"] == "https"
    (endpoint,) = made.one("ServiceMonitor", "-qdrant")["spec"]["endpoints"]
    service = made.one("Service", "-qdrant")["metadata"]
    host = f"{service['name']}.{NAMESPACE}.svc"
    assert endpoint["scheme"] == "https"
    ca = {"secret": {"name": "qdrant-certificates", "key": "ca.crt"}}
    assert endpoint["tlsConfig"] == {"ca": ca, "serverName": host}
    router = {one["name"]: one.get("value") for name, one in made.env() if name == "router"}
    assert router["MATRYOSHKA_ROUTER_QDRANT_URL"] == f"https://{host}:6333"
    assert router["MATRYOSHKA_ROUTER_QDRANT_TLS_CA"] == "/etc/matryoshka/qdrant/ca.crt"


def test_an_external_server_is_called_over_tls_by_its_url():
    """Without a Secret its CA is one that everybody trusts, as of a cloud's."""
    url = "https://example.cloud.qdrant.io:6333"
    for secret in ("", "its-ca"):
        made = render({"qdrant": {"mode": "external", "url": url, "tlsSecret": secret}})
        router = {one["name"]: one.get("value") for name, one in made.env() if name == "router"}
        assert router["MATRYOSHKA_ROUTER_QDRANT_URL"] == url
        assert ("MATRYOSHKA_ROUTER_QDRANT_TLS_CA" in router) == bool(secret)
    for _, pod, _ in rendered("default").pods():
        assert "qdrant" not in {volume["name"] for volume in pod["spec"]["volumes"]}
