"""Starts a job's process on this machine, and stops it.

From an argument list, never a shell; as a new program, never a fork of the server; with an
environment that holds no secrets of the service.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Protocol

from services.trainer.jobs.spec import LOG

# What programs, libraries and accelerators need to be found; nothing of ours.
_KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "HF_HOME", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "MPLCONFIGDIR",
    "OMP_NUM_THREADS",
)  # fmt: skip
_RUN = "services.trainer.training.run"


class Launcher(Protocol):
    """Runs jobs somewhere."""

    async def run(self, job_dir: Path) -> int:
        """Run a job's process to its end; cancelling this stops the process first.

        Returns:
            Its exit code; negative: the signal that ended it.

        Raises:
            OSError: it cannot be started.
        """

    async def forget(self, job_id: str) -> None:
        """Remove what it keeps of a job that has ended."""


class LocalLauncher:
    """Runs jobs as child processes.

    Args:
        stop_s: time between SIGTERM and SIGKILL.
        silence_s: a process that hears nothing of this service for so long ends by itself.
        devices: processes of one job, each with a device of its own; they start together
            through torchrun.
    """

    def __init__(self, stop_s: float, silence_s: float, devices: int = 1) -> None:
        self._stop_s = stop_s
        self._silence_s = silence_s
        self._devices = devices

    async def run(self, job_dir: Path) -> int:
        """See `Launcher`."""
        with (job_dir / LOG).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *self._program(job_dir), "--silence", str(self._silence_s),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment(self._devices),
                # Ctrl-C in the service's terminal is the service's to handle.
                start_new_session=True,
            )  # fmt: skip
        try:
            return await process.wait()
        except asyncio.CancelledError:
            # Being asked to stop twice must not leave the process behind.
            stopping = asyncio.ensure_future(self._stop(process))
            while not stopping.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(stopping)
            raise

    async def forget(self, job_id: str) -> None:
        """Do nothing: a process that has ended leaves nothing but its folder."""

    def _program(self, job_dir: Path) -> list[str]:
        if self._devices == 1:
            return ["-m", _RUN, str(job_dir), "--parent", str(os.getpid())]
        return [
            "-m", "torch.distributed.run", "--standalone", "--nnodes", "1",
            "--nproc-per-node", str(self._devices), "--max-restarts", "0", "-m", _RUN, str(job_dir),
        ]  # fmt: skip

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            # The whole session: torchrun has children of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def environment(devices: int) -> dict[str, str]:
    """Return the variables of a job with so many processes: none of the service's secrets."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if devices > 1:  # each of its processes would take all; torchrun gives each of them one
        kept.pop("OMP_NUM_THREADS", None)
    ours = {
        # The base model is on disk by now.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait for each other sleep instead of spinning: on cores shared with the
        # encoder and the router, spinning makes a step many times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return kept | ours
