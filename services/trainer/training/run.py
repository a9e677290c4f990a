"""The process of one job: `python -m services.trainer.training.run JOB_DIR [--parent PID]`.

Files are its only interface, see `spec.py`. It can be killed at any moment and started again.
Exit codes: 0 done, 1 failed (error.json says why), 74 the disk is full, 75 stopped before the end.
"""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from services.shared import logs
from services.shared.errors import InvalidRequest, ServiceError
from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.spec import (
    LEASE,
    LOCK,
    Failure,
    FailureCode,
    Spec,
    failure_path,
    result_path,
    spec_path,
)
from services.trainer.training import ranks
from services.trainer.training.disk import is_disk_full
from services.trainer.training.interrupt import (
    DISK_FULL,
    NOT_FINISHED,
    Interrupt,
    Interrupted,
    exit_with_parent,
    exit_with_silence,
)
from services.trainer.training.traced import traced
from services.trainer.training.work import follow_job, run_job

log = logging.getLogger(__name__)

# A process whose parent was killed ends within about a second; a checkpoint may take longer.
_LOCK_TIMEOUT_S = 60.0


def main(arguments: Sequence[str]) -> int:
    """Run the job of a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.training.run", description=__doc__
    )
    parser.add_argument("job_dir", type=Path, help="the job's folder")
    parser.add_argument("--parent", type=int, help="end when this is no longer the parent")
    parser.add_argument("--silence", type=float, help="end when the lease is older, in s")
    options = parser.parse_args(arguments)
    job_dir: Path = options.job_dir.resolve()
    logs.configure("text")
    interrupt = Interrupt()
    interrupt.catch_sigterm()
    if options.parent is not None:
        exit_with_parent(options.parent)
    if options.silence is not None:
        exit_with_silence(job_dir / LEASE, options.silence)
    try:
        ranks.begin()
        is_first = ranks.is_first()
        spec = Spec.read(spec_path(job_dir))
        if spec is None or not spec.is_shared:
            ranks.end()
        if is_first:
            with hold_lock(job_dir / LOCK, _LOCK_TIMEOUT_S), traced(spec):
                if not result_path(job_dir).exists():
                    run_job(job_dir, interrupt)
        elif spec and spec.is_shared and not result_path(job_dir).exists():
            follow_job(job_dir, spec, interrupt)
        return 0
    except (Interrupted, TimeoutError) as error:
        log.info("stopped before the end: %s", error or "asked to")
        return NOT_FINISHED
    except Exception as error:
        return _fail(job_dir, error)
    finally:
        ranks.end()


def _fail(job_dir: Path, error: Exception) -> int:
    """Say why the job cannot succeed; return the exit code."""
    if is_disk_full(error):
        log.error("the disk is full: %s", error)
        return DISK_FULL
    code: FailureCode = "internal_error"
    param = None
    if isinstance(error, ServiceError):
        message, param = error.message, error.param
        code = "invalid_data" if isinstance(error, InvalidRequest) else "training_failed"
        log.error("%s", message)
    elif isinstance(error, MemoryError | torch.OutOfMemoryError):
        message = "memory is exhausted; try a smaller batch_size"
        code = "out_of_memory"
        log.error("%s", message, exc_info=error)
    else:  # the one place where a bug of ours becomes a failed job
        log.error("the job failed", exc_info=error)
        message = f"internal error ({type(error).__name__}); the job's log.txt says more"
    try:
        Failure(message=message, code=code, param=param).write(failure_path(job_dir))
    except OSError as unwritten:
        if is_disk_full(unwritten):
            return DISK_FULL
        raise
    return 1


def _leave(code: int) -> NoReturn:
    """End with this code, also where the log cannot be written: Python's own would be 120."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
