"""A job as Kubernetes objects: a batch/v1 Job, and for several nodes the service that names them.

Plain objects, so any cluster will do. Progress lies in the job's folder alone: pods may be taken
away at any time, and go on from the last checkpoint. Nothing of the API's token reaches them.
Source: Kubernetes' reference of `batch/v1` (1.31 and later); Kueue's label for plain Jobs.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.jobs.placement import Placement
from services.trainer.training.interrupt import DISK_FULL, NOT_FINISHED

PORT = 29400  # torchrun's own
_RUN = "services.trainer.training.run"
_CONTAINER = "training"
_USER = 65532
_MAX_RESTARTS = 3
_KEPT_S = 24 * 3600

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodKind:
    """What all jobs' pods have in common."""

    image: str
    """With this package and Python in it."""
    claim: str
    """The volume claim that holds the data folder; many nodes must be able to write it."""
    data_dir: Path
    """Where it is mounted, in the trainer's pod and in the jobs'."""
    nodes: int
    """Pods of one job."""
    devices: int
    """Processes of a pod, each with a GPU of its own if there are any."""
    gpus: int
    """GPUs of a pod; 0: it trains on the CPU."""
    cpu: str
    memory: str
    """Requests and limits of a pod, as Kubernetes writes them."""
    queue: str
    """Kueue's LocalQueue; "": none."""
    stop_s: float
    """Time for a pod to write a checkpoint and end."""
    placement: Placement = field(default_factory=Placement)


def job_manifest(job_id: str, job_dir: Path, kind: PodKind) -> Manifest:
    """Return the Job that runs a job's process; with a queue, Kueue starts it."""
    labels = {
        "app.kubernetes.io/name": "matryoshka",
        "app.kubernetes.io/component": "training",
        "matryoshka/job": job_id,
    }
    queue = {"kueue.x-k8s.io/queue-name": kind.queue} if kind.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_id, "labels": labels | queue},
        "spec": {
            "suspend": bool(kind.queue),
            "completionMode": "Indexed",
            "completions": kind.nodes,
            "parallelism": kind.nodes,
            "backoffLimit": _MAX_RESTARTS * kind.nodes,
            # A second pod never begins while the first one still saves.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules(kind)},
            "ttlSecondsAfterFinished": _KEPT_S,
            "template": {"metadata": {"labels": labels}, "spec": _pod(job_id, job_dir, kind)},
        },
    }


def service_manifest(job_id: str) -> Manifest:
    """Return the headless service by which the pods of one job find the first of them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job_id, "labels": {"matryoshka/job": job_id}},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"matryoshka/job": job_id},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _failure_rules(kind: PodKind) -> list[Manifest]:
    rules: list[Manifest] = [
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        }
    ]
    if not _is_distributed(kind):  # torchrun has exit codes of its own
        for action, codes in (("Ignore", [DISK_FULL, NOT_FINISHED]), ("FailJob", [1])):
            exits = {"containerName": _CONTAINER, "operator": "In", "values": codes}
            rules.append({"action": action, "onExitCodes": exits})
    return rules


def _pod(job_id: str, job_dir: Path, kind: PodKind) -> Manifest:
    resources: dict[str, str] = {"cpu": kind.cpu, "memory": kind.memory}
    if kind.gpus:
        resources["nvidia.com/gpu"] = str(kind.gpus)
    return kind.placement.fields | {
        "restartPolicy": "Never",
        "subdomain": job_id,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": max(1, round(kind.stop_s)),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": _CONTAINER,
                "image": kind.image,
                "command": command(job_id, job_dir, kind),
                "env": _variables(kind),
                "resources": {"requests": resources, "limits": resources},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "data", "mountPath": str(kind.data_dir)},
                    {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
                ],
            }
        ],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": kind.claim}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }


def _variables(kind: PodKind) -> list[Manifest]:
    found: list[Manifest] = [
        {"name": "HF_HUB_OFFLINE", "value": "1"},
        {"name": "TOKENIZERS_PARALLELISM", "value": "false"},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 (a volume of the pod's own)
    ]
    if kind.devices == 1:  # torchrun gives each of several processes one
        # As many threads as a node has cores would fight over the few that the limit leaves.
        cores = {"resource": "limits.cpu", "divisor": "1"}
        found.append({"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": cores}})
    return found


def command(job_id: str, job_dir: Path, kind: PodKind) -> list[str]:
    """Return what a pod runs: the job's process, or torchrun with several of them."""
    if not _is_distributed(kind):
        return ["python", "-m", _RUN, str(job_dir)]
    return [
        "python", "-m", "torch.distributed.run",
        "--nnodes", str(kind.nodes), "--nproc-per-node", str(kind.devices),
        "--rdzv-backend", "c10d", "--rdzv-id", job_id,
        "--rdzv-endpoint", f"{job_id}-0.{job_id}:{PORT}",
        "--max-restarts", "0", "-m", _RUN, str(job_dir),
    ]  # fmt: skip


def _is_distributed(kind: PodKind) -> bool:
    return kind.nodes > 1 or kind.devices > 1
