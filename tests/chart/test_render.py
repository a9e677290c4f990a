"""Every set of values makes objects that Kubernetes takes and restricted namespaces admit."""

import json

import helm_python as helm
import jsonschema
import pytest

from tests.chart.chart import CASES, CHART, NAMESPACE, rendered, values
from tests.chart.schemas import OPERATORS, VERSIONS, check


def test_there_are_values_for_all_that_a_chart_may_become():
    """At least a dozen files, and each overlay that users are given is among the cases."""
    assert len(list(CHART.glob("ci/*.yaml"))) >= 12
    assert {path.stem for path in CHART.glob("values-*.yaml")} == {
        f"values-{name}" for name in ("one-machine", "production", "gpu", "plain")
    }


@pytest.mark.parametrize("case", CASES)
def test_strict_lint_finds_nothing(case):
    """No error and no warning, with the schema of values."""
    found = helm.lint(CHART, values(case), strict=True, kube_version="v1.34.0")
    assert found["errors"] == []
    assert [one for one in found["messages"] if one["severity"] > 1] == []


@pytest.fixture(scope="module")
def distinct_objects():
    """Objects of all cases, those that are the same only once: {text: object}."""
    return {
        json.dumps(found, sort_keys=True): found
        for case in CASES
        for found in rendered(case).objects
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(version, distinct_objects):
    """By each version's strict schemas, and ours for operators' kinds; nothing unknown in them."""
    for found in distinct_objects.values():
        check(found, version)
    assert {found["kind"] for found in distinct_objects.values()} >= set(OPERATORS)


def test_the_schemas_refuse_what_is_wrong(distinct_objects):
    """A field that is misspelt anywhere is seen, in objects of Kubernetes and of operators."""
    kinds = {found["kind"]: found for found in distinct_objects.values()}
    for kind in ("Deployment", "NetworkPolicy", "PodMonitor", "ScaledObject", "HTTPRoute"):
        wrong = json.loads(json.dumps(kinds[kind]))
        wrong["spec"]["selectors"] = {}
        with pytest.raises(jsonschema.ValidationError, match="selectors"):
            check(wrong, VERSIONS[0])


@pytest.mark.parametrize("case", CASES)
def test_objects_are_named_once_and_short(case):
    """No two of a kind share a name; names fit where Kubernetes puts them."""
    names = [(found["kind"], found["metadata"]["name"]) for found in rendered(case).objects]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 for _, name in names)
    for found in rendered(case).objects:
        if found["kind"] != "PriorityClass" and found["metadata"]["name"] != "mine":
            assert found["metadata"]["namespace"] == NAMESPACE


@pytest.mark.parametrize("case", CASES)
def test_selectors_find_their_pods(case):
    """Workloads, Services, budgets and policies name labels that pods have, and Services no two."""
    made = rendered(case)
    labels = {name: pod["metadata"]["labels"] for name, pod, _ in made.pods()}

    def found(selector):
        return {name for name in labels if selector.items() <= labels[name].items()}

    for name, pod, owner in made.pods():
        if owner["kind"] != "Pod":
            selector = owner["spec"]["selector"]["matchLabels"]
            assert selector.items() <= pod["metadata"]["labels"].items()
            assert found(selector) == {name}, "two workloads would fight over pods"
    for service in made.of("Service"):
        pods = found(service["spec"]["selector"])
        assert pods, service["metadata"]["name"]
        assert len({labels[name]["app.kubernetes.io/component"] for name in pods}) == 1
    for budget in made.of("PodDisruptionBudget"):
        assert len(found(budget["spec"]["selector"]["matchLabels"])) == 1


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted(case):
    """As Pod Security says; its root cannot be written, it has bounds, no variable holds a key."""
    for name, pod, _ in rendered(case).pods():
        spec = pod["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
        whole = spec["securityContext"]
        assert whole["runAsNonRoot"] is True, name
        assert whole["runAsUser"] > 0, name
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, "services' addresses would pass for settings"
        for container in [*spec["containers"], *spec.get("initContainers", ())]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert not [port for port in container.get("ports", ()) if "hostPort" in port], name
            requests = container["resources"]["requests"]
            assert {"cpu", "memory"} <= set(requests), name
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), name
            assert not [one for one in container.get("env", ()) if "secretKeyRef" in str(one)], name


@pytest.mark.parametrize("case", CASES)
def test_only_a_trainer_that_makes_jobs_has_a_token(case):
    """Nobody else could call the Kubernetes API."""
    made = rendered(case)
    with_token = {
        name for name, pod, _ in made.pods() if pod["spec"]["automountServiceAccountToken"]
    }
    makes_jobs = {
        name
        for name, pod, _ in made.pods()
        for variable in pod["spec"]["containers"][0].get("env", ())
        if (variable["name"], variable.get("value"))
        == ("MATRYOSHKA_TRAINER_LAUNCHER", "kubernetes")
    }
    assert with_token == makes_jobs
    assert all(not found["automountServiceAccountToken"] for found in made.of("ServiceAccount"))
    names = {found["metadata"]["name"] for found in made.of("ServiceAccount")}
    used = {pod["spec"]["serviceAccountName"] for _, pod, _ in made.pods()
            if "serviceAccountName" in pod["spec"]}  # fmt: skip
    assert used == names
