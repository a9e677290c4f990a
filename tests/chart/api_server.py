"""A small Kubernetes API on a real socket, as far as Helm needs one to install and upgrade.

Discovery, objects that are got, listed, made, applied, patched and deleted. What the strict
schemas of Kubernetes refuse, it refuses, and changes of what is fixed. Nothing runs: there are no
controllers and no pods.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

from tests.chart.schemas import NEWEST, check

# {group/version: {plural: kind}}; all in namespaces, but for those below.
KINDS = {
    "v1": {
        "configmaps": "ConfigMap", "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod", "secrets": "Secret", "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "gateway.networking.k8s.io/v1": {"grpcroutes": "GRPCRoute", "httproutes": "HTTPRoute"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
    "monitoring.coreos.com/v1": {
        "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule",
        "servicemonitors": "ServiceMonitor",
    },
    "networking.k8s.io/v1": {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "rbac.authorization.k8s.io/v1": {"rolebindings": "RoleBinding", "roles": "Role"},
    "scheduling.k8s.io/v1": {"priorityclasses": "PriorityClass"},
}  # fmt: skip
OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
CLUSTER_WIDE = {"PriorityClass"}
# What Kubernetes lets nobody change in an object that is there, as far as it matters here.
FIXED = {
    "Deployment": ["selector"],
    "StatefulSet": ["selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy"],
    "PersistentVolumeClaim": ["accessModes", "storageClassName"],
    "Service": ["clusterIP"],
}
PATH = re.compile(
    r"/(?:api|apis)/(?P<api>v1|[\w.]+/\w+)(?:/namespaces/(?P<space>[\w-]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[\w.-]+))?"
)
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{}}}}]
current-context: c
"""


class ApiServer:
    """Objects by (kind, name); `with` runs it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict] = {}
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "ApiServer":
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig = KUBECONFIG.format(url=self.url)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def names(self) -> set[tuple[str, str]]:
        return set(self.objects)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, dict]:
        url = urlsplit(target)
        if found := _discovery(url.path):
            return 200, found
        match = PATH.fullmatch(url.path)
        kind = KINDS.get(match["api"], {}).get(match["plural"]) if match else None
        if kind is None:
            return _status(404, f"there is no {url.path}")
        with self.lock:
            self.calls.append((method, url.path))
            given = yaml.safe_load(body) if body else {}
            key = (kind, match["name"] or given.get("metadata", {}).get("name", ""))
            return getattr(self, f"_{method.lower()}")(key, match, given, parse_qs(url.query))

    def _get(self, key, match, _, query):
        if match["name"]:
            found = self.objects.get(key)
            return (200, found) if found else _status(404, f"{key} not found")
        wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",")
                      if "=" in part)  # fmt: skip
        items = [
            one
            for (kind, _), one in self.objects.items()
            if kind == key[0] and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        return 200, {"apiVersion": match["api"], "kind": f"{key[0]}List", "metadata": {},
                     "items": items}  # fmt: skip

    def _post(self, key, match, given, query):
        if key in self.objects:
            return _status(409, f"{key} already exists")
        return self._keep(key, match, given, 201)

    def _put(self, key, match, given, query):
        return self._keep(key, match, given, 200)

    def _patch(self, key, match, given, query):
        """Take an applied object whole, as one owner's; other patches by merging."""
        there = self.objects.get(key)
        if there is not None and "kind" not in given:
            given = _merged(there, given)
        return self._keep(key, match, given, 200 if there else 201)

    def _delete(self, key, match, given, query):
        return (200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}) if (
            self.objects.pop(key, None)
        ) else _status(404, f"{key} not found")  # fmt: skip

    def _keep(self, key, match, given, code):
        given.setdefault("apiVersion", match["api"])
        given.setdefault("kind", key[0])
        given["metadata"].pop("managedFields", None)
        bare = {name: value for name, value in given.items() if name != "status"}
        try:
            check(json.loads(json.dumps(bare)), NEWEST)
        except jsonschema.ValidationError as error:
            return _status(422, f"{key}: {error.message}")
        if changed := _fixed_fields_that_change(self.objects.get(key), given):
            return _status(422, f"{key}: {', '.join(changed)} may not change")
        kept = self.objects[key] = json.loads(json.dumps(given))
        if key[0] not in CLUSTER_WIDE:
            kept["metadata"]["namespace"] = match["space"]
        kept["metadata"].setdefault("uid", f"{key[0]}-{key[1]}")
        kept["metadata"]["resourceVersion"] = str(len(self.calls))
        return code, kept


def _fixed_fields_that_change(before: dict | None, after: dict) -> list[str]:
    if before is None:
        return []
    fields = FIXED.get(after["kind"], ())
    return [name for name in fields if before["spec"].get(name) != after["spec"].get(name)]


def _merged(base: dict, patch: dict) -> dict:
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _discovery(path: str) -> dict | None:
    if path == "/version":
        return {"major": "1", "minor": NEWEST.split(".")[1], "gitVersion": f"v{NEWEST}"}
    if path == "/openapi/v3":
        return {"paths": {}}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [
            {"name": api.split("/")[0], "versions": [version], "preferredVersion": version}
            for api in KINDS
            if "/" in api
            for version in [{"groupVersion": api, "version": api.split("/")[1]}]
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    api = re.sub(r"^/apis?/", "", path)
    if api in KINDS:
        verbs = ["create", "delete", "get", "list", "patch", "update"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "verbs": verbs,
             "namespaced": kind not in CLUSTER_WIDE}
            for plural, kind in KINDS[api].items()
        ]  # fmt: skip
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api,
                "resources": resources}  # fmt: skip
    return None


def _status(code: int, message: str) -> tuple[int, dict]:
    reason = {404: "NotFound", 409: "AlreadyExists", 422: "Invalid"}[code]
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                  "reason": reason, "message": message}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith("/openapi/v2"):  # protobuf; an empty document
            content, kind, code = b"", OPENAPI_V2, 200
        else:
            code, answer = self.api.answer(self.command, self.path, body)
            content, kind = json.dumps(answer).encode(), "application/json"
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""
