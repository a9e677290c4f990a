"""The watch over a training: looks every so many steps, keeps the best weights, says when to stop.

Its memory is the best look alone, kept on disk, so that a run that was killed stops at the same
step as one that was not.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from services.trainer.jobs.hyperparameters import EarlyStopping
from services.trainer.training import ranks
from services.trainer.training.checkpoint import Checkpoint, State, load_newest, save

_SCORE = "score"


class Watch:
    """What a training is stopped by.

    Args:
        stopping: when to look, and how long to wait.
        score: of the trainee as it is, -1..1; the same weights give the same.
        folder: keeps the best weights.
        metric: what people call the score.
    """

    def __init__(
        self, stopping: EarlyStopping, score: Callable[[], float], folder: Path, metric: str
    ) -> None:
        self._stopping = stopping
        self._score = score
        self._metric = metric
        self._folder = folder
        self._best = load_newest(folder)

    def look(self, step: int, is_last: bool, state: Callable[[], State]) -> str:
        """Look at the trainee after a step, if it is time to.

        Args:
            step: counts from 1.
            is_last: look in any case.
            state: gives the weights.

        Returns:
            What was seen, for people; empty where nothing was looked at.
        """
        if step % self._stopping.every_steps and not is_last:
            return ""
        if self._best and step <= self._best.step:  # seen already, before a kill
            return ""
        score = self._score()
        dim = self._stopping.dim
        if self._best and score <= self._best_score:
            since = f"at step {self._best.step} it was {self._best_score:.4f}"
            return f"step {step}: {self._metric} at {dim} is {score:.4f}, {since}"
        weights = {name: tensor.clone() for name, tensor in state().items()}
        self._best = Checkpoint(step, weights | {_SCORE: torch.tensor(score, dtype=torch.float64)})
        if ranks.is_first():  # the others have the same weights, and see the same
            save(self._folder, self._best)
        return f"step {step}: {self._metric} at {dim} is {score:.4f}, the best so far"

    def is_over(self, step: int) -> bool:
        """Whether nothing was gained for as long as was to be waited."""
        waited = step - self._best.step if self._best else 0
        return waited >= self._stopping.patience * self._stopping.every_steps

    @torch.no_grad()
    def restore_best(self, parameters: dict[str, torch.nn.Parameter]) -> str:
        """Put back the weights of the best look; say which, for people."""
        if self._best is None:
            return ""
        for name, parameter in parameters.items():
            parameter.copy_(self._best.state[name])
        scored = f"{self._metric} at {self._stopping.dim} was {self._best_score:.4f}"
        return f"the weights of step {self._best.step} are kept, where {scored}"

    @property
    def _best_score(self) -> float:
        return float(self._best.state[_SCORE]) if self._best else -1.0
