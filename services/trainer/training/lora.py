"""LoRA: low-rank changes of a network's linear layers, few weights to train and to keep.

Each chosen layer gets W + (alpha / rank) up down, with W frozen and `up` zero at the start. At the
end the change is added to W, so the finished model is like any other.

Source: Hu et al. 2021, arXiv:2106.09685.
Shapes: I numbers in, O numbers out, R the rank.
"""

import math
from typing import Any

import torch
from torch.nn import functional

from services.shared.errors import ServiceError
from services.trainer.jobs.hyperparameters import Lora

_MAX_NAMED = 10


class LowRank(torch.nn.Linear):
    """A linear layer with a low-rank change; it stands in the layer's place."""

    down_RI: torch.nn.Parameter
    up_OR: torch.nn.Parameter
    scale: float

    @classmethod
    def over(cls, linear: torch.nn.Linear, lora: Lora, random: torch.Generator) -> "LowRank":
        """Return the layer with a change that does nothing yet; it shares the layer's weights."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, linear.bias is not None)
        made.weight, made.bias = linear.weight, linear.bias
        # As a linear layer of torch starts, see arXiv:1502.01852; uniform within 1 / sqrt(I).
        bound = 1 / math.sqrt(linear.in_features)
        down_RI = (2 * torch.rand(lora.rank, linear.in_features, generator=random) - 1) * bound
        device = linear.weight.device
        made.down_RI = torch.nn.Parameter(down_RI.to(device))
        made.up_OR = torch.nn.Parameter(torch.zeros(linear.out_features, lora.rank, device=device))
        made.scale = lora.alpha / lora.rank
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        changed = functional.linear(functional.linear(input, self.down_RI), self.up_OR)
        return super().forward(input) + self.scale * changed

    @torch.no_grad()
    def merged(self) -> torch.nn.Linear:
        """Return a plain layer that does the same."""
        with torch.device("meta"):
            plain = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None)
        self.weight += self.scale * self.up_OR @ self.down_RI
        plain.weight, plain.bias = self.weight, self.bias
        return plain


class LoraLayers:
    """The changed layers of a network; all its own weights are frozen.

    Args:
        network: is changed in its place.
        lora: which layers, and how much.
        seed: of the numbers of chance that the changes start with.

    Raises:
        ServiceError: no linear layer has one of the names.
    """

    def __init__(self, network: torch.nn.Module, lora: Lora, seed: int) -> None:
        network.requires_grad_(False)
        self._network = network
        random = torch.Generator().manual_seed(seed)
        self._names = _find(network, lora.targets)
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name in self._names:
            changed = LowRank.over(network.get_submodule(name), lora, random)  # type: ignore[arg-type]
            _put(network, name, changed)
            self.parameters |= {f"{name}.down": changed.down_RI, f"{name}.up": changed.up_OR}

    def merge(self) -> None:
        """Add the changes to the weights; the network is as it was built again."""
        for name in self._names:
            layer: Any = self._network.get_submodule(name)
            _put(self._network, name, layer.merged())


def _find(network: torch.nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Return the names of the linear layers to change."""
    # Exactly this class: others may compute another thing of the same weight.
    linear = [name for name, module in network.named_modules() if type(module) is torch.nn.Linear]
    last = {name.rpartition(".")[2] for name in linear}
    if unknown := sorted(set(targets) - last):
        known = ", ".join(sorted(last)[:_MAX_NAMED]) or "none"
        raise ServiceError(
            f"lora.targets names {', '.join(unknown)}, which no linear layer of the model is "
            f"called; its layers are called {known}"
        )
    if not linear:
        raise ServiceError("the base model has no linear layers for LoRA to change")
    return [name for name in linear if not targets or name.rpartition(".")[2] in targets]


def _put(network: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)
