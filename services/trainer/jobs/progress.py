"""How far a running job is, as metrics: told from its events while it runs.

Sizes are the only label: at most 64 of each job, and those of ended jobs stay as they were last.
"""

from pathlib import Path

from services.shared.card import SimilarityScores
from services.trainer.jobs.events import read_events
from services.trainer.jobs.spec import Result, result_path
from services.trainer.metrics import TrainerMetrics


class Progress:
    """Follows one job; what happened before it is passed over.

    Args:
        folder: the job's.
        metrics: the service's.
    """

    def __init__(self, folder: Path, metrics: TrainerMetrics) -> None:
        self._folder = folder
        self._metrics = metrics
        events, self._begin = read_events(folder, 0)
        self._tokens = max((event.tokens for event in events), default=0)

    def look(self) -> None:
        """Show what has happened since the last look."""
        events, self._begin = read_events(self._folder, self._begin)
        for event in events:
            # A process that begins anew counts from 0.
            self._metrics.tokens.inc(
                event.tokens - self._tokens if event.tokens >= self._tokens else event.tokens
            )
            self._tokens = event.tokens
        for event in (event for event in events[-1:] if event.loss):
            for dim, loss in event.loss.items():
                self._metrics.loss.labels(str(dim)).set(loss)
            self._metrics.gradient_norm.set(event.gradient_norm)
            if event.utilization:
                self._metrics.flops_utilization.set(event.utilization)

    def show_quality(self) -> None:
        """Show what each size keeps, once the job has succeeded."""
        result = Result.read(result_path(self._folder))
        if result is None or result.quality is None:
            return
        sides = {"before": result.quality.before, "after": result.quality.after}
        for side, scores in sides.items():
            for one in scores:
                is_similarity = isinstance(one, SimilarityScores)
                gauge = self._metrics.spearman if is_similarity else self._metrics.ndcg10
                gauge.labels(str(one.dim), side).set(one.score)
