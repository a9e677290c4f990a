"""Runs jobs as Kubernetes Jobs, through the API of the cluster that the trainer runs in.

Plain HTTPS with the service account's token: the calls are five, and the official client would be
the trainer's largest dependency after torch. A Job has the job's id as its name, so that there is
one at most, whichever service looks after it: one that comes back finds it, and waits for it.
"""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import httpx

from services.shared.errors import ServiceError
from services.trainer.jobs.manifest import Manifest, PodKind, job_manifest, service_manifest

_TIMEOUT_S = 30.0
_SUSPEND: Manifest = {"spec": {"suspend": True}}
_GO_ON: Manifest = {"spec": {"suspend": False}}


class Cluster:
    """The API of a cluster, as far as jobs need it.

    Args:
        url: of the API server.
        namespace: of all objects.
        token_file: read anew at each call, as the token changes; None: none is sent.
        certificates: of who signed the server's; None: the system's.
    """

    def __init__(
        self, url: str, namespace: str, token_file: Path | None, certificates: Path | None
    ) -> None:
        verify = ssl.create_default_context(cafile=certificates) if certificates else True
        self._client = httpx.AsyncClient(base_url=url, verify=verify, timeout=_TIMEOUT_S)
        self._jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._services = f"/api/v1/namespaces/{namespace}/services"
        self._token_file = token_file

    async def close(self) -> None:
        await self._client.aclose()

    async def create_job(self, manifest: Manifest) -> None:
        await self._call("POST", self._jobs, manifest, ignored=409)

    async def create_service(self, manifest: Manifest) -> None:
        await self._call("POST", self._services, manifest, ignored=409)

    async def get_job(self, name: str) -> Manifest | None:
        """Return a Job; None: there is none."""
        return await self._call("GET", f"{self._jobs}/{name}", ignored=404)

    async def patch_job(self, name: str, change: Manifest) -> None:
        await self._call("PATCH", f"{self._jobs}/{name}", change, ignored=404)

    async def delete(self, name: str) -> None:
        """Delete a Job with its pods, and its service; harmless if they are gone."""
        options = {"propagationPolicy": "Foreground"}
        await self._call("DELETE", f"{self._jobs}/{name}", options, ignored=404)
        await self._call("DELETE", f"{self._services}/{name}", ignored=404)

    async def _call(
        self, method: str, path: str, body: Manifest | None = None, ignored: int = 0
    ) -> Manifest | None:
        """Make a call.

        Raises:
            ServiceError: the cluster refuses it, and says why.
            httpx.TransportError: it cannot be reached.
        """
        kind = "merge-patch+json" if method == "PATCH" else "json"
        headers = {"content-type": f"application/{kind}"}
        if self._token_file is not None:
            token = await asyncio.to_thread(self._token_file.read_text)
            headers["authorization"] = f"Bearer {token.strip()}"
        answer = await self._client.request(method, path, json=body, headers=headers)
        if answer.status_code == ignored:
            return None
        if answer.status_code >= 500 or answer.status_code == 429:
            raise httpx.TransportError(f"the cluster answers {answer.status_code}")
        if answer.is_error:
            raise ServiceError(f"the cluster refuses a job's {method}: {_reason(answer)}")
        found: Manifest = answer.json()
        return found


class KubernetesLauncher:
    """Runs each job as a Job (a `launcher.Launcher`).

    Args:
        cluster: see there; closed by whoever made it.
        kind: what all pods have in common.
        look_s: time between two looks at a Job.
    """

    def __init__(self, cluster: Cluster, kind: PodKind, look_s: float = 2.0) -> None:
        self._cluster = cluster
        self._kind = kind
        self._look_s = look_s

    async def run(self, job_dir: Path) -> int:
        """See `launcher.Launcher`; 1 stands for any failure."""
        name = job_dir.name
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):  # it may be back at the next look
                    code = await self._look(name, job_dir)
                    if code is not None:
                        await self._cluster.delete(name)
                        return code
                await asyncio.sleep(self._look_s)
        except asyncio.CancelledError:
            await self._stop(name)
            raise

    async def forget(self, job_id: str) -> None:
        """Delete what is left of a job."""
        with contextlib.suppress(httpx.TransportError):  # its time to live ends it
            await self._cluster.delete(job_id)

    async def _look(self, name: str, job_dir: Path) -> int | None:
        """Begin, or go on; return the exit code once the Job has ended."""
        job = await self._cluster.get_job(name)
        if job is None:
            if self._kind.nodes > 1:
                await self._cluster.create_service(service_manifest(name))
            await self._cluster.create_job(job_manifest(name, job_dir, self._kind))
            return None
        if "deletionTimestamp" in job["metadata"]:
            return None
        status: dict[str, Any] = job.get("status", {})
        if (code := _end(status)) is not None:
            return code
        # What waits for Kueue is started by it alone.
        if job["spec"].get("suspend") and not self._kind.queue:
            await self._cluster.patch_job(name, _GO_ON)
        return None

    async def _stop(self, name: str) -> None:
        """Suspend the Job, or take it from its queue, and wait until no pod is left.

        Of a cluster that cannot be reached nothing is known; another service finds the Job there.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._kind.stop_s + _TIMEOUT_S):
                while True:
                    if await self._is_stopped(name):
                        return
                    await asyncio.sleep(self._look_s)

    async def _is_stopped(self, name: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            job = await self._cluster.get_job(name)
            if job is None or _is_idle(job):
                return True
            if self._kind.queue:  # Kueue would start a suspended one again
                await self._cluster.delete(name)
            elif not job["spec"].get("suspend"):
                await self._cluster.patch_job(name, _SUSPEND)
        return False


def _end(status: dict[str, Any]) -> int | None:
    """Return the exit code that stands for how a Job ended; None: it has not."""
    for condition in status.get("conditions", ()):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return int(condition["type"] == "Failed")
    return None


def _is_idle(job: Manifest) -> bool:
    """Say whether a suspended or ended Job has no pod."""
    status = job.get("status", {})
    ended = _end(status) is not None
    has_pods = status.get("active") or status.get("terminating")
    return not has_pods and bool(ended or job["spec"].get("suspend"))


def _reason(answer: httpx.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        return str(answer.json().get("message", answer.status_code))[:500]
    return str(answer.status_code)
