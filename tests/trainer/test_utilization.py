"""Model FLOPs utilisation of a training, against hand calculations."""

import time

import pytest
import torch

from services.shared.flops import Cost, peak
from services.shared.model import TextModel
from services.trainer.training.full import FullModel
from services.trainer.training.passes import Passes
from services.trainer.training.start import make_table
from services.trainer.training.utilization import Utilization


@pytest.mark.parametrize(("is_frozen", "times"), [(False, 3), (True, 2)])
def test_the_ratio_is_of_what_the_texts_needed(tiny_model, tiny_pairs, is_frozen, times):
    """Forward once, and gradients once or twice, by seconds by peak; a second pass to save memory
    is not counted."""
    model = TextModel(tiny_model, "float32")
    passes = Passes(model, 40)  # in parts, each of which runs twice
    learned = FullModel(model, tiny_pairs, (16, 32), passes)
    utilization, begin = Utilization(passes, is_frozen), time.monotonic()
    learned.losses(torch.arange(8)).sum().backward()
    ratio, seconds = utilization.look(), time.monotonic() - begin
    cost = Cost.of(model.tower("none").network)
    texts = [model.tokenize([p.anchor], "query")[0] for p in tiny_pairs[:8]]
    texts += [model.tokenize([p.positive], "document")[0] for p in tiny_pairs[:8]]
    needed = times * sum(cost.flops(len(tokens)) for tokens in texts)
    # The clock of the ratio starts a little sooner and stops a little sooner.
    assert ratio == pytest.approx(needed / seconds / peak("float32", model.device), rel=0.2)
    assert utilization.look() == 0.0  # nothing since


def test_a_table_multiplies_nothing(tmp_path, tiny_model, tiny_pairs):
    """Nothing is measured for it, and nothing is shown."""
    make_table(TextModel(tiny_model, "float32"), tmp_path / "table", 0)
    model = TextModel(tmp_path / "table", "float32")
    passes = Passes(model, 10**6)
    utilization = Utilization(passes, is_frozen=False)
    FullModel(model, tiny_pairs, (16, 32), passes).losses(torch.arange(8)).sum().backward()
    assert passes.num_tokens > 0
    assert utilization.look() == 0.0
