"""The training loop, from top to bottom: batch, loss, gradient, step, event, checkpoint.

The same for every method; what is trained comes in as a `Trainee`. All randomness and the
learning rate are functions of (seed, step), so a run that was killed at any moment and goes on
from a checkpoint ends in the same weights, bit for bit, as one that was not.

Shapes: B pairs in the batch, K sizes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from services.shared.errors import ServiceError
from services.trainer.jobs.events import Event
from services.trainer.jobs.hyperparameters import Hyperparameters
from services.trainer.training import parallel, ranks
from services.trainer.training.checkpoint import Checkpoint, State, load_newest, save
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.watch import Watch

_EVENT_INTERVAL_S = 0.5
_ADAM_STATES = ("step", "exp_avg", "exp_avg_sq")


class Trainee(Protocol):
    """What is trained: a head or a rotation of frozen vectors, or weights of a text model."""

    parameters: dict[str, torch.nn.Parameter]

    @property
    def num_tokens(self) -> int:
        """Tokens that went through a text model so far; 0: there is none."""

    def losses(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return losses_K of the pairs in `rows_B`, one for each size."""


class TrainingFailed(ServiceError):
    """The run cannot go on; the message says why and what may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How to train."""

    num_pairs: int
    dims: Sequence[int]
    """As the trainee's losses."""
    dim_weights: Sequence[float] = ()
    """What the loss of each size counts for; empty: 1 each."""
    steps: int
    batch_size: int
    learning_rate: float
    """The highest; the schedule stays below."""
    schedule: Literal["one_cycle", "linear"]
    seed: int
    weight_decay: float
    max_gradient_norm: float
    checkpoint_steps: int


def plan(hyper: Hyperparameters, num_pairs: int, checkpoint_steps: int) -> Course:
    """Return how to train with the hyperparameters."""
    is_head = hyper.method in ("adaptor", "nest")
    # LoRA's changes and a table of chance have nothing to be drawn back to.
    decays = hyper.method == "full" or hyper.student == "base"
    return Course(
        num_pairs=num_pairs,
        dims=hyper.trained_dims,
        dim_weights=hyper.trained_weights,
        steps=hyper.steps,
        batch_size=min(hyper.batch_size, num_pairs),
        learning_rate=hyper.learning_rate,
        schedule="one_cycle" if is_head else "linear",
        seed=hyper.seed,
        weight_decay=0.01 if decays else 0.0,
        # Generous for a head: its loss is a sum over sizes.
        max_gradient_norm=100.0 if is_head else 1.0,
        checkpoint_steps=checkpoint_steps,
    )


def train(
    trainee: Trainee,
    course: Course,
    checkpoints: Path,
    on_event: Callable[[Event], None],
    interrupt: Interrupt,
    watch: Watch | None = None,
) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Args:
        trainee: changes.
        course: how.
        checkpoints: folder that keeps them.
        on_event: told how far it is.
        interrupt: stops it.
        watch: ends it early, and has the last word on the weights; None: neither.

    Raises:
        Interrupted: asked to stop; a checkpoint of the last step is written.
        TrainingFailed: the loss or a gradient is not finite; the weights are those before.
    """
    parameters = list(trainee.parameters.values())
    # In one pass over the memory on CPUs, where torch would go through it a dozen times.
    is_fused = all(parameter.device.type == "cpu" for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters, weight_decay=course.weight_decay, fused=is_fused)
    found = ranks.together(lambda: load_newest(checkpoints))
    first = 0
    if found:
        first = found.step
        _restore(found.state, trainee, optimizer)
    weights_K = torch.tensor(course.dim_weights or [1.0] * len(course.dims))
    begin = last_event = time.monotonic()
    for step in range(first, course.steps):
        if watch and watch.is_over(step):
            break
        torch.manual_seed(_number(course.seed, step))  # dropout
        rows_B = torch.from_numpy(batch_rows(course, step))
        losses_K = trainee.losses(rows_B)
        optimizer.zero_grad()
        (losses_K @ weights_K.to(losses_K)).backward()  # type: ignore[no-untyped-call]
        losses_K = parallel.average(parameters, losses_K)
        norm = torch.nn.utils.clip_grad_norm_(parameters, course.max_gradient_norm)
        losses = losses_K.tolist()
        _check_finite(losses, float(norm), step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(course, step)
        optimizer.step()
        done = step + 1
        if watch and (seen := watch.look(done, done == course.steps, lambda: _weights(trainee))):
            on_event(Event(phase="train", message=seen, step=done, total_steps=course.steps))
        is_last = done == course.steps or bool(watch and watch.is_over(done))
        now = time.monotonic()
        if is_last or now - last_event >= _EVENT_INTERVAL_S:
            last_event = now
            rate = (done - first) / (now - begin)
            on_event(
                replace(
                    _progress(done, course, losses, rate),
                    gradient_norm=float(norm),
                    tokens=trainee.num_tokens,
                )
            )
        is_over = ranks.any_of(interrupt.is_set)
        is_due = done % course.checkpoint_steps == 0 or done == course.steps
        if (is_over or is_due) and ranks.is_first():
            save(checkpoints, Checkpoint(done, _state(trainee, optimizer)))
        if is_over:
            raise Interrupted
    if watch and (kept := watch.restore_best(trainee.parameters)):
        on_event(Event(phase="train", message=kept))


def batch_rows(course: Course, step: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the pairs of a step: each epoch sees every pair once, in an order of its own."""
    places_B = np.arange(step * course.batch_size, (step + 1) * course.batch_size)
    epochs_B, offsets_B = np.divmod(places_B, course.num_pairs)
    rows_B = np.empty_like(places_B)
    for epoch in np.unique(epochs_B):
        order = np.random.default_rng([course.seed, int(epoch)]).permutation(course.num_pairs)
        rows_B[epochs_B == epoch] = order[offsets_B[epochs_B == epoch]]
    return rows_B


def learning_rate(course: Course, step: int) -> float:
    """Return a step's learning rate: up to the highest and down again."""
    place = (step + 1) / course.steps
    if course.schedule == "linear":
        # A tenth of the steps to warm up, then straight down: the usual way for all weights.
        return course.learning_rate * min(place / 0.1, (1 - place) / 0.9 + 1 / course.steps, 1.0)
    # One cycle (Smith and Topin 2018, arXiv:1708.07120), in torch's shape: from 1/25 up to the
    # highest over 30 % of the steps, then down to nothing, both along a cosine.
    if place < 0.3:
        low, along = 1 / 25, place / 0.3
    else:
        low, along = 0.0, (1 - place) / 0.7
    return course.learning_rate * (low + (1 - low) * (1 - math.cos(math.pi * along)) / 2)


def _number(seed: int, step: int) -> int:
    """One number for torch's generator from the two."""
    return int(np.random.default_rng([seed, step]).integers(2**62))


def _check_finite(losses: list[float], norm: float, step: int) -> None:
    if not all(map(math.isfinite, [*losses, norm])):
        raise TrainingFailed(
            f"the loss or its gradient is not finite at step {step + 1}; "
            "try a smaller learning_rate"
        )


def _progress(done: int, course: Course, losses: list[float], rate: float) -> Event:
    return Event(
        phase="train",
        message=f"training, step {done} of {course.steps}",
        step=done,
        total_steps=course.steps,
        loss=dict(zip(course.dims, losses, strict=True)),
        steps_per_second=rate,
        seconds_left=(course.steps - done) / rate,
    )


def _weights(trainee: Trainee) -> State:
    return {name: parameter.detach() for name, parameter in trainee.parameters.items()}


def _state(trainee: Trainee, optimizer: torch.optim.AdamW) -> State:
    """Parameters under their names, and what Adam remembers of each."""
    state: State = {}
    for name, parameter in trainee.parameters.items():
        state[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            state[f"{key}/{name}"] = value
    return state


def _restore(state: State, trainee: Trainee, optimizer: torch.optim.AdamW) -> None:
    with torch.no_grad():
        for name, parameter in trainee.parameters.items():
            parameter.copy_(state[f"parameter/{name}"])
            # Parameters that no gradient reached have no memory.
            keys = [key for key in _ADAM_STATES if f"{key}/{name}" in state]
            memory = {key: state[f"{key}/{name}"] for key in keys}
            if memory:
                # Adam counts its steps on the CPU.
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in memory.items()
                }
