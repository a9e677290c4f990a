"""The spans of a job, below the call that created it, if that was traced."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from services.shared.trace import Tracing
from services.shared.trace_export import start_tracing
from services.trainer.jobs.spec import Spec
from services.trainer.training.interrupt import Interrupted

log = logging.getLogger(__name__)

_CLOSE_S = 5.0
"""Longest that a finished job waits for a collector that is away."""


@contextlib.contextmanager
def traced(spec: Spec | None) -> Iterator[None]:
    """Make what runs in the block one span, with those of its stages below; or nothing."""
    tracing = None if spec is None else _start(spec)
    if tracing is None or spec is None:
        yield
        return
    try:
        with tracing.begin("training", "Job", {"traceparent": spec.traceparent}) as job:
            try:
                yield
            except Interrupted:
                job.outcome = "CANCELLED"
                raise
    finally:
        closing = threading.Thread(target=tracing.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def _start(spec: Spec) -> Tracing | None:
    if spec.trace_to is None or not spec.traceparent:
        return None
    try:
        return start_tracing(spec.trace_to, 1.0, "training")
    except (ImportError, OSError) as error:  # a job is worth more than what is seen of it
        log.warning("the job is not traced: %s", error)
        return None
