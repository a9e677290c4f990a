"""Model FLOPs utilisation: the count against hand calculations, and what an encoder shows."""

import re
import types

import httpx
import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import (
    BertConfig,
    BertModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
)

from services.encoder.flops import Utilization, measure_peak
from services.encoder.metrics import EncoderMetrics
from services.shared.flops import Cost
from services.shared.model import TextModel
from tests.families import checkpoints

RATIO = "matryoshka_encoder_flops_utilization_ratio"
FLOPS = "matryoshka_encoder_forward_flops_total"
SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def test_the_count_is_that_of_a_hand_calculation():
    """2 x weights x tokens and 4 x width x tokens squared a layer; no tables, norms or pooler."""
    cost = Cost.of(BertModel(BertConfig(**SMALL, num_hidden_layers=3)))
    weights = 3 * (4 * 32 * 32 + 2 * 32 * 64)
    assert cost.flops(5) == 2 * weights * 5 + 3 * 4 * 32 * 5 * 5
    assert cost.flops(7) == 2 * weights * 7 + 3 * 4 * 32 * 7 * 7


def test_heads_may_be_wider_than_the_network():
    """Attention is as wide as its heads together, here 4 x 16 in a network of 32."""
    config = Qwen3Config(**SMALL, num_hidden_layers=2, head_dim=16, num_key_value_heads=2)
    weights = 2 * (2 * 32 * 64 + 2 * 32 * 32 + 3 * 32 * 64)
    assert Cost.of(Qwen3Model(config)).flops(6) == 2 * weights * 6 + 2 * 4 * 64 * 6 * 6


def test_a_layer_with_a_window_counts_what_it_sees():
    """One of three layers sees all, the others less than a window away; causal ones backwards."""
    config = ModernBertConfig(
        **SMALL, num_hidden_layers=3, global_attn_every_n_layers=3, local_attention=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    cost = Cost.of(ModernBertModel(config))
    window = config.sliding_window
    assert cost.reaches == ((float("inf"), 1), (2 * window - 1, 2))
    linear = 2 * cost.weights * 100
    assert cost.flops(100) == linear + 4 * 32 * 100 * (100 + 2 * (2 * window - 1))
    causal = MistralConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=4, sliding_window=9)
    assert Cost.of(MistralModel(causal)).reaches == ((9, 2),)


def test_attention_is_left_out_where_nothing_says_what_it_is():
    """A network without a config costs its weights; static embeddings, without one, nothing."""
    network = torch.nn.Linear(8, 4)
    assert Cost.of(network).flops(10) == 2 * 8 * 4 * 10
    # Of towers within a model, or stages within a tower.
    network.config = types.SimpleNamespace(hidden_size=[8, 16], head_dim=4, num_hidden_layers=None)
    assert Cost.of(network).flops(10) == 2 * 8 * 4 * 10
    assert Cost.of(None).flops(10) == 0


@pytest.fixture
def bert(tmp_path):
    checkpoints.gte_bert(tmp_path)
    return TextModel(tmp_path, "float32", "cpu")


def test_the_ratio_is_of_the_last_passes_and_goes_with_the_model(bert):
    """Operations by seconds by peak; a second at another pace moves it; unloaded, it is gone."""
    registry = CollectorRegistry()
    flops = Cost.of(bert.tower("none").network).flops
    utilization = Utilization("m", bert, EncoderMetrics(registry), peak=1e6)

    def read(name=RATIO):
        return registry.get_sample_value(name, {"model": "m"})

    utilization.observe([[1] * 5, [1] * 7], 0.5)
    first = (flops(5) + flops(7)) / 0.5 / 1e6
    assert read() == pytest.approx(first)
    assert read(FLOPS) == flops(5) + flops(7)
    utilization.observe([[1] * 5, [1] * 7], 1.0)
    assert first / 2 < read() < first * 0.75
    for _ in range(10):
        utilization.observe([[1] * 5, [1] * 7], 1.0)
    assert read() == pytest.approx(first / 2, rel=1e-3)
    utilization.forget()
    assert read() is None
    # A pass that was running then.
    utilization.observe([[1] * 5], 1.0)
    assert read() is None


def test_a_static_model_has_no_ratio(tmp_path):
    """It multiplies nothing, so nothing is measured for it and nothing is shown."""
    checkpoints.static(tmp_path)
    model, registry = TextModel(tmp_path, "float32", "cpu"), CollectorRegistry()
    assert measure_peak(model) is None
    Utilization("m", model, EncoderMetrics(registry), None).observe([[1, 2]], 0.1)
    assert registry.get_sample_value(RATIO, {"model": "m"}) is None
    assert registry.get_sample_value(FLOPS, {"model": "m"}) == 0


def test_the_peak_is_the_arithmetics_and_measured_once(bert, caplog):
    """Some machine's, FLOP/s, and the same number when it is asked for again."""
    with caplog.at_level("INFO", "services.shared.flops"):
        peak = measure_peak(bert)
        assert measure_peak(bert) == peak
    assert 1e8 < peak < 1e15
    assert len([r for r in caplog.records if "float32" in r.getMessage()]) <= 1


def test_a_running_encoder_shows_its_share_of_the_peak(http_client):
    """Above zero, and no more than a peak that was measured on a busy machine could excuse."""
    body = {
        "model": "default",
        "input": [f"{i} nested dolls in a row of others" for i in range(64)],
    }
    before = shown(http_client, FLOPS)
    assert http_client.post("/v1/embeddings", json=body).status_code == 200
    # The default model multiplies each token with 10.6 million numbers.
    assert shown(http_client, FLOPS) - before > 64 * 8 * 2 * 10.6e6
    assert 0 < shown(http_client, RATIO) <= 1.5


def shown(client: httpx.Client, name: str) -> float:
    found = re.search(rf'^{name}{{model="[^"]+"}} (\S+)', client.get("/metrics").text, re.M)
    assert found
    return float(found[1])
