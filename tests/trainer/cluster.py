"""A small Kubernetes API on a real socket, whose pods are real processes on this machine.

It keeps Jobs and Services, refuses what Kubernetes' schemas refuse, starts a Job's pods, suspends
them with SIGTERM, counts failures by the Job's own rules, and says how it ended.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import kubernetes_validate

VERSION = "1.34"
PATH = re.compile(r"/(?:api/v1|apis/batch/v1)/namespaces/(\w+)/(jobs|services)(?:/([\w-]+))?")
IGNORED = "Ignore"


class Cluster:
    """Objects by kind and name; `with` runs it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.objects: dict[tuple[str, str], dict] = {}
        self.pods: dict[str, list[subprocess.Popen]] = {}
        self.made: list[tuple[str, dict]] = []
        self.calls: list[tuple[str, str]] = []
        self.is_down = False
        self._lock = threading.RLock()
        self._ended = threading.Event()

    def __enter__(self) -> "Cluster":
        handler = type("Handler", (_Handler,), {"cluster": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,)),
            threading.Thread(target=self._control),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        for pod in [pod for pods in self.pods.values() for pod in pods]:
            pod.kill()
            pod.wait()

    def answer(self, method: str, path: str, token: str, body: dict) -> tuple[int, dict]:
        with self._lock:
            self.calls.append((method, path))
            if self.is_down:
                return 503, {"message": "down"}
            if token != f"Bearer {self.token}":
                return 403, {"message": "jobs.batch is forbidden"}
            _, kind, name = PATH.fullmatch(path).groups()
            return getattr(self, f"_{method.lower()}")(kind, name, body)

    def _post(self, kind, _, body):
        name = body["metadata"]["name"]
        if (kind, name) in self.objects:
            return 409, {"message": "already exists"}
        try:
            kubernetes_validate.validate(body, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            return 422, {"message": error.message}
        self.objects[kind, name] = json.loads(json.dumps(body))
        self.made.append((kind, body))
        return 201, body

    def _get(self, kind, name, _):
        found = self.objects.get((kind, name))
        return (200, found) if found else (404, {"message": "not found"})

    def _patch(self, kind, name, body):
        if (kind, name) not in self.objects:
            return 404, {"message": "not found"}
        self.objects[kind, name]["spec"] |= body["spec"]
        return 200, self.objects[kind, name]

    def _delete(self, kind, name, _):
        if (kind, name) not in self.objects:
            return 404, {"message": "not found"}
        self.objects[kind, name]["metadata"]["deletionTimestamp"] = "now"
        return 200, {}

    def _control(self) -> None:
        while not self._ended.wait(0.02):
            with self._lock:
                for (kind, name), found in list(self.objects.items()):
                    if kind == "jobs":
                        self._look(name, found)
                    elif "deletionTimestamp" in found["metadata"]:
                        del self.objects[kind, name]

    def _look(self, name, job):
        status = job.setdefault("status", {"conditions": []})
        if status["conditions"] and "deletionTimestamp" not in job["metadata"]:
            return
        running = [pod for pod in self.pods.get(name, []) if pod.poll() is None]
        stopped = job["spec"]["suspend"] or "deletionTimestamp" in job["metadata"]
        ended = [pod.returncode for pod in self.pods.get(name, []) if pod.returncode is not None]
        self.pods[name] = running
        status["active"] = len(running)
        if stopped:
            for pod in running:
                pod.send_signal(signal.SIGTERM)
            if not running and "deletionTimestamp" in job["metadata"]:
                del self.objects["jobs", name]
            return
        succeeded = status["succeeded"] = status.get("succeeded", 0) + ended.count(0)
        for code in ended:
            if code and self._action(job, code) != IGNORED:
                status["failed"] = status.get("failed", 0) + 1
                if self._action(job, code) or status["failed"] > job["spec"]["backoffLimit"]:
                    status["conditions"] = [{"type": "Failed", "status": "True"}]
                    return
        if succeeded == job["spec"]["completions"]:
            status["conditions"] = [{"type": "Complete", "status": "True"}]
        elif len(running) + succeeded < job["spec"]["parallelism"]:
            self.pods[name].append(self._start(job))

    @staticmethod
    def _action(job, code):
        for rule in job["spec"]["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", ()):
                return rule["action"]
        return None

    @staticmethod
    def _start(job):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        command = [sys.executable if part == "python" else part for part in container["command"]]
        cores = container["resources"]["limits"]["cpu"]
        names = {one["name"]: one.get("value", cores) for one in container["env"]}
        del names["HOME"]  # a pod's own folder
        return subprocess.Popen(
            command, env=os.environ | names, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait_for_pod(self, name, timeout_s=30.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if pods := self.pods.get(name):
                return pods[0]
            time.sleep(0.02)
        raise AssertionError("no pod")


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        token = self.headers.get("authorization", "")
        status, answer = self.cluster.answer(
            self.command, self.path, token, json.loads(body or b"{}")
        )
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass
