"""The process of one job: `python -m services.trainer.training.run JOB_DIR [--parent PID]`.

Files are its only interface, see `spec.py`. It can be killed at any moment and started again.
Exit codes: 0 done, 1 failed (error.json says why), 75 stopped before the end.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from services.shared import logs
from services.shared.errors import ServiceError
from services.trainer.jobs.lock import hold_lock
from services.trainer.jobs.spec import LOCK, Failure, failure_path, result_path
from services.trainer.training.interrupt import (
    NOT_FINISHED,
    Interrupt,
    Interrupted,
    exit_with_parent,
)
from services.trainer.training.work import run_job

log = logging.getLogger(__name__)

# A process whose parent was killed ends within about a second; a checkpoint may take longer.
_LOCK_TIMEOUT_S = 60.0


def main(arguments: Sequence[str]) -> int:
    """Run the job of a folder; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.training.run", description=__doc__
    )
    parser.add_argument("job_dir", type=Path, help="the job's folder")
    parser.add_argument("--parent", type=int, help="stop when this process is no longer the parent")
    options = parser.parse_args(arguments)
    job_dir: Path = options.job_dir.resolve()
    logs.configure("text")
    interrupt = Interrupt()
    interrupt.catch_sigterm()
    if options.parent is not None:
        exit_with_parent(options.parent)
    try:
        with hold_lock(job_dir / LOCK, _LOCK_TIMEOUT_S):
            if not result_path(job_dir).exists():
                run_job(job_dir, interrupt)
        return 0
    except (Interrupted, TimeoutError) as error:
        log.info("stopped before the end: %s", error or "asked to")
        return NOT_FINISHED
    except ServiceError as error:
        message = error.message
        log.error("%s", message)
    except Exception as error:  # the one place where a bug of ours becomes a failed job
        log.exception("the job failed")
        message = f"internal error ({type(error).__name__}); the job's log.txt says more"
    Failure(message=message).write(failure_path(job_dir))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
