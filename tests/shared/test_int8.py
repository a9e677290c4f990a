"""Int8: near the exact vectors, the same bits in any batch, rounded once."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from services.shared import kernels
from services.shared.calibration import sample_texts
from services.shared.engines import Engines
from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, locate
from services.shared.forward import Packed
from services.shared.int8 import Int8
from services.shared.int8_linear import Inputs, quantize_linear
from services.shared.model import TextModel
from services.shared.packing import PairTokens

TEXTS = [
    "how long does a cold last",
    "Measles is a very contagious disease caused by a virus. It spreads through the air when an "
    "infected person coughs or sneezes, and it starts with fever, a runny nose and red eyes.",
    "In what country is Normandy located?",
    "price",
    "The water wheel turned slowly. " * 20,
    "Who wrote the first novel that was printed in this town, and why was it forgotten?",
]


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel(locate(BASE_MODEL), "float32")


@pytest.fixture(scope="module")
def kept(model: TextModel, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("kept"), model.tower("none").network)


@pytest.fixture(scope="module")
def int8(model: TextModel, kept: Engines):
    tower = model.tower("none")
    way = Int8(tower, Packed(tower), kept)
    yield way
    way.close()


def tokens_of(model: TextModel, texts: list[str]) -> list[list[int]]:
    return sorted((model.cut_tokens(ids) for ids in model.tokenize(texts)), key=len)


def test_vectors_are_near_the_exact_ones_on_texts_it_was_not_fitted_to(model, int8):
    """At the full width and at short ones; at load the encoder asks for 0.999 of every text."""
    batch = tokens_of(model, TEXTS + sample_texts(20, seed=77))
    exact_BD = torch.from_numpy(model.encode(batch))
    vectors_BD = int8(batch)
    for dim in (384, 128, 64):
        cosines = functional.cosine_similarity(vectors_BD[:, :dim], exact_BD[:, :dim], dim=1)
        assert cosines.min() >= 0.9985, dim
        assert cosines.mean() >= 0.9996, dim


@given(data=st.data())
def test_a_text_gives_the_same_bits_in_any_batch(model, int8, data):
    """Alone, beside others, in any company: not near, equal."""
    batch = tokens_of(model, TEXTS)
    alone_BD = [int8([tokens])[0] for tokens in batch]
    rows = sorted(data.draw(st.sets(st.integers(0, len(batch) - 1), min_size=1)))
    together_BD = int8([batch[row] for row in rows])
    for row, vector_D in zip(rows, together_BD, strict=True):
        assert torch.equal(vector_D, alone_BD[row])


def test_weights_are_rounded_once_and_kept(model, int8, kept, caplog):
    """The next start reads them and gives the same bits; a broken file only costs time."""
    tower = model.tower("none")
    batch = tokens_of(model, TEXTS)
    with caplog.at_level(logging.INFO, "services.shared"):
        again = Int8(tower, Packed(tower), kept)
    again.close()
    assert not [record for record in caplog.records if "rounding" in record.message]
    restarted = Int8(tower, Packed(tower), kept)
    assert torch.equal(restarted(batch), int8(batch))
    restarted.close()
    kept._weights.write_bytes(b"broken")
    assert kept.read_weights() == {}
    assert "made again" in caplog.text


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("kind", [(BertConfig, BertModel), (RobertaConfig, RobertaModel)])
def test_other_networks_of_the_kind_are_the_same_computation(kind, pooling, monkeypatch):
    """Positions, norms and poolings are the architecture's own: near equal on random weights."""
    config_class, model_class = kind
    torch.manual_seed(0)
    config = config_class(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=130, pad_token_id=1,
    )  # fmt: skip
    tower = FakeTower(model_class(config, add_pooling_layer=False).eval(), pooling)
    packed = Packed(tower)
    way = Int8(tower, packed, None)
    chooser = np.random.default_rng(0)
    batch = [chooser.integers(5, 500, length).tolist() for length in (2, 9, 9, 40, 120)]
    with torch.inference_mode():
        exact_BD = packed(batch)
    assert functional.cosine_similarity(way(batch), exact_BD, dim=1).min() >= 0.998
    way.close()


def test_pairs_types_are_added():
    """Each token gets the vector of its own type, as the architecture adds it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=130, initializer_range=0.2,
    )  # fmt: skip
    tower = FakeTower(BertModel(config, add_pooling_layer=False).eval(), "cls")
    packed = Packed(tower)
    way = Int8(tower, packed, None)
    ids = list(range(10, 40))
    pairs = [PairTokens(ids, [0] * split + [1] * (30 - split)) for split in (5, 15, 25)]
    with torch.inference_mode():
        exact_BD = packed(pairs)
    assert functional.cosine_similarity(exact_BD[0], exact_BD[1], dim=0) < 0.99
    assert functional.cosine_similarity(way(pairs), exact_BD, dim=1).min() >= 0.995
    way.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [({"hidden_act": "relu"}, "knows gelu"), ({"is_decoder": True}, "both directions")],
)
def test_what_it_would_get_wrong_is_refused(change, says):
    """Another activation or a causal network is left to the other arithmetics."""
    config = BertConfig(vocab_size=50, hidden_size=32, num_attention_heads=2, **change)
    tower = FakeTower(BertModel(config, add_pooling_layer=False), "mean")
    with pytest.raises(InvalidRequest, match=says):
        Int8(tower, Packed(tower), None)


class FakeTower:
    """A tower around a random network; its tokenizer makes an id of each word."""

    is_static = takes_images = False
    device = "cpu"

    def __init__(self, network: torch.nn.Module, pooling: str) -> None:
        self.network, self.pooling, self.heads = network, pooling, []
        table = network.embeddings.position_embeddings
        self.first_position = 0 if table.padding_idx is None else table.padding_idx + 1

    def sample(self, count: int, seed: int) -> list[list[int]]:
        texts = sample_texts(count, seed)
        return [[5 + sum(map(ord, word)) % 490 for word in text.split()][:100] for text in texts]


def test_carrying_errors_over_beats_plain_rounding():
    """On inputs that are correlated, as real ones are, the outputs' error is far smaller."""
    torch.manual_seed(0)
    inputs_TK = torch.randn(2000, 16) @ torch.randn(16, 96) + 0.1 * torch.randn(2000, 96)
    inputs_TK[:, 3] *= 20
    weight_NK = torch.randn(32, 96)
    inputs = Inputs(96)
    inputs.add(inputs_TK, torch.ones(2000))
    linear = quantize_linear(weight_NK, torch.zeros(32), inputs)
    assert 3 in linear.exact_E
    rounded_KN = linear.weight_KN.float().numpy() * linear.scale_N
    assert not rounded_KN[linear.exact_E].any()
    rounded_KN[linear.exact_E] = linear.weight_EN
    exact_TN = (inputs_TK @ weight_NK.T).numpy()
    ours = np.square(inputs_TK.numpy() * linear.smooth_K @ rounded_KN - exact_TN).mean()
    scale_N1 = weight_NK.abs().amax(1, keepdim=True) / 127
    plain_NK = torch.round(weight_NK / scale_N1) * scale_N1
    plain = np.square((inputs_TK @ plain_NK.T).numpy() - exact_TN).mean()
    assert ours < plain / 4


@given(rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_kernels_do_what_they_say(rows, seed):
    """Each against plain numpy: rounding, product, bias, norm and gelu."""
    chooser = np.random.default_rng(seed)
    width, outputs = 24, 48
    floats = lambda *shape: chooser.standard_normal(shape).astype(np.float32)  # noqa: E731
    x_TK, smooth_K = floats(rows, width) * 3, np.abs(floats(width)) + 0.1
    exact_E = chooser.choice(width, kernels.NUM_EXACT, replace=False)
    x_TK[:, exact_E] *= 100
    quantized = buffers(rows, width)
    kernels.quantize(x_TK, smooth_K, exact_E, *quantized)
    again_TK = undone(quantized, exact_E)
    assert np.array_equal(again_TK[:, exact_E], (x_TK * smooth_K)[:, exact_E])
    assert np.abs(again_TK - x_TK * smooth_K).max() <= quantized[1].max() * 0.51

    weight_KN = chooser.integers(-127, 128, (width, outputs))
    weight_KN[exact_E] = 0
    scale_N, weight_EN = np.abs(floats(outputs)) / 100, floats(kernels.NUM_EXACT, outputs)
    bias_N = floats(outputs)
    real_KN = weight_KN * scale_N
    acc_TN = (quantized[0].astype(np.int32) @ weight_KN).astype(np.int32)
    product = (acc_TN, *quantized[1:], scale_N, real_KN.sum(0).astype(np.float32), weight_EN)
    real_KN[exact_E] = weight_EN
    exact_TN = again_TK @ real_KN + bias_N
    y_TN = np.empty((rows, outputs), np.float32)
    kernels.dequantize(*product, bias_N, y_TN)
    np.testing.assert_allclose(y_TN, exact_TN, rtol=1e-4, atol=1e-2)

    h_TN, gain_N, shift_N = floats(rows, outputs), floats(outputs), floats(outputs)
    total = torch.from_numpy((h_TN + exact_TN).astype(np.float32))
    normed = functional.layer_norm(
        total, (outputs,), torch.from_numpy(gain_N), torch.from_numpy(shift_N), 1e-5
    )
    kernels.add_norm(*product, bias_N, gain_N, shift_N, np.float32(1e-5), h_TN)
    np.testing.assert_allclose(h_TN, normed.numpy(), rtol=1e-3, atol=2e-3)

    out, smooth_N = buffers(rows, outputs), np.ones(outputs, np.float32)
    kernels.gelu_quantize(*product, bias_N, smooth_N, np.arange(kernels.NUM_EXACT), *out)
    gelu_TN = functional.gelu(torch.from_numpy(exact_TN.astype(np.float32))).numpy()
    near_TN = undone(out, np.arange(kernels.NUM_EXACT))
    assert np.abs(near_TN - gelu_TN).max() <= out[1].max() * 0.6 + 1e-2


def buffers(rows: int, width: int) -> tuple[np.ndarray, ...]:
    """What a kernel fills: int8, step, middle, and exact numbers."""
    return (
        np.empty((rows, width), np.int8),
        np.empty(rows, np.float32),
        np.empty(rows, np.float32),
        np.empty((rows, kernels.NUM_EXACT), np.float32),
    )


def undone(quantized: tuple[np.ndarray, ...], exact_E: np.ndarray) -> np.ndarray:
    """The numbers that the int8 and the exact ones stand for."""
    q_TK, step_T, middle_T, exact_TE = quantized
    again_TK = q_TK * step_T[:, None] + middle_T[:, None]
    again_TK[:, exact_E] = exact_TE
    return again_TK
