"""Int8 for BERT and its kin on CPUs: twice the arithmetic of bfloat16, near the same vectors.

In: a tower whose packed forward pass is faithful in float32. Out: another way to run it. Weights
are rounded once, inputs per token at run time, so a text gives the same bits in any batch.
Between the matrix products all is float32. Each core runs small batches of its own, which stay in
its cache, instead of all cores sharing each product.

Shapes: T tokens of a small batch, D width, F width of the feed-forward layer, B texts, H heads.
"""

import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from services.shared import kernels
from services.shared.engines import Engines
from services.shared.errors import InvalidRequest
from services.shared.forward import Packed
from services.shared.int8_linear import Inputs, Int8Linear, quantize_linear
from services.shared.packing import Tokens, split_by_tokens, type_ids
from services.shared.tower import Tower
from services.shared.vectors import Array

log = logging.getLogger(__name__)

_NETWORKS = {"BertModel", "RobertaModel", "XLMRobertaModel"}
_SAMPLE_TEXTS = 256
_SAMPLE_SEED = 1
_SAMPLE_BATCH_TOKENS = 1024
# Tokens of a small batch: enough to keep a product busy, few enough to stay in a core's cache.
_MAX_TOKENS = 512
_MIN_TOKENS = 128
# Numbers in a vector register of 512 bits.
_LANES = 16


@dataclass(frozen=True, slots=True)
class _Norm:
    gain_D: Array
    shift_D: Array
    eps: np.float32

    @classmethod
    def of(cls, norm: torch.nn.LayerNorm) -> "_Norm":
        return cls(_array(norm.weight), _array(norm.bias), np.float32(norm.eps))


@dataclass(frozen=True, slots=True)
class _Layer:
    """One of the network's layers: attention and feed-forward, each followed by a norm."""

    qkv: Int8Linear
    out: Int8Linear
    up: Int8Linear
    down: Int8Linear
    norm: _Norm
    last_norm: _Norm

    @classmethod
    def of(cls, layer: Any, linears: list[Int8Linear]) -> "_Layer":  # noqa: ANN401 (transformers')
        qkv, out, up, down = linears
        norms = _Norm.of(layer.attention.output.LayerNorm), _Norm.of(layer.output.LayerNorm)
        return cls(qkv, out, up, down, *norms)


class Int8:
    """The forward pass in int8.

    Args:
        tower: of BERT, RoBERTa or XLM-RoBERTa, with float32 weights.
        packed: its faithful way in float32, which is calibrated on.
        engines: where the rounded weights are kept; None keeps nothing.

    Raises:
        InvalidRequest: another architecture or device.
    """

    name = "packed"

    def __init__(self, tower: Tower, packed: Packed, engines: Engines | None) -> None:
        _check(tower)
        network = tower.network
        table = network.embeddings
        self._tower = tower
        self._pooling = packed.pooling
        self._first_position = tower.first_position
        self._num_heads: int = network.config.num_attention_heads
        self._words_VD = _array(table.word_embeddings.weight)
        self._places_PD = _array(table.position_embeddings.weight)
        self._kinds_KD = _array(table.token_type_embeddings.weight)
        self._norm = _Norm.of(table.LayerNorm)
        linears = _restore(network, engines) or _calibrate(tower, packed, engines)
        self._layers = [
            _Layer.of(layer, linears[4 * i : 4 * i + 4])
            for i, layer in enumerate(network.encoder.layer)
        ]
        self._threads = _single_threads()

    def close(self) -> None:
        self._threads.shutdown()

    def __call__(self, batch: Sequence[Tokens]) -> torch.Tensor:
        share = sum(map(len, batch)) // torch.get_num_threads() + 1
        parts = split_by_tokens(batch, max(_MIN_TOKENS, min(_MAX_TOKENS, share)))
        # The longest first, so that no core is left with them in the end.
        running = [
            (rows, self._threads.submit(self._encode, [batch[row] for row in rows]))
            for rows in reversed(parts)
        ]
        pooled_BD = np.empty((len(batch), self._words_VD.shape[1]), np.float32)
        for rows, part in running:
            pooled_BD[rows] = part.result()
        features = {"sentence_embedding": torch.from_numpy(pooled_BD)}
        for module in self._tower.heads:
            features = module(features)
        return features["sentence_embedding"].float()

    @torch.inference_mode()
    def _encode(self, texts: list[Tokens]) -> Array:
        """Run a small batch, sorted by length, on this thread; return pooled_BD."""
        lengths = [len(tokens) for tokens in texts]
        hidden_TD = self._embed(texts, lengths)
        num_tokens, width = hidden_TD.shape
        qkv_T3D = _SPACE.take("qkv", (num_tokens, 3 * width), torch.float32).numpy()
        groups = [(length, len(list(same))) for length, same in groupby(lengths)]
        for layer in self._layers:
            rounded = _Rounded(hidden_TD, layer.qkv)
            rounded.through(layer.qkv, kernels.dequantize, qkv_T3D)
            rounded = _Rounded(_attend(qkv_T3D, groups, self._num_heads), layer.out)
            rounded.through(layer.out, kernels.add_norm, *_arguments(layer.norm), hidden_TD)
            rounded = _Rounded(hidden_TD, layer.up)
            wide = _Rounded.empty(num_tokens, layer.down)
            down = layer.down.smooth_K, layer.down.exact_E, *wide.arrays
            rounded.through(layer.up, kernels.gelu_quantize, *down)
            wide.through(layer.down, kernels.add_norm, *_arguments(layer.last_norm), hidden_TD)
        return _pool(hidden_TD, lengths, self._pooling)

    def _embed(self, texts: list[Tokens], lengths: list[int]) -> Array:
        tokens_T = np.fromiter((t for tokens in texts for t in tokens), np.int64, sum(lengths))
        positions_T = np.concatenate([np.arange(length) for length in lengths])
        types_T = np.array(type_ids(texts) or [0] * len(tokens_T), np.int64)
        shape = (len(tokens_T), self._words_VD.shape[1])
        hidden_TD = _SPACE.take("hidden", shape, torch.float32).numpy()
        kernels.embed(
            tokens_T, positions_T + self._first_position, types_T, self._words_VD,
            self._places_PD, self._kinds_KD, *_arguments(self._norm), hidden_TD,
        )  # fmt: skip
        return hidden_TD


class _Space(threading.local):
    """Memory of a thread that every small batch uses again: fresh pages would cost a fifth more."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return memory of this shape, of any content; the last taken by this name is lost."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)


_SPACE = _Space()


class _Rounded:
    """Inputs of a layer in int8: q_TK, each token's step and middle, and its exact inputs."""

    def __init__(self, x_TK: Array, linear: Int8Linear) -> None:
        self._allocate(len(x_TK), linear, "inputs")
        kernels.quantize(x_TK, linear.smooth_K, linear.exact_E, *self.arrays)

    @classmethod
    def empty(cls, num_tokens: int, linear: Int8Linear) -> "_Rounded":
        """To be filled by a kernel, while the inputs of another layer are in use."""
        rounded = cls.__new__(cls)
        rounded._allocate(num_tokens, linear, "wide")
        return rounded

    def _allocate(self, num_tokens: int, linear: Int8Linear, name: str) -> None:
        shape = (_num_rows(num_tokens), len(linear.weight_KN))
        self._q_TK = _SPACE.take(name, shape, torch.int8)
        self._ranges = (
            np.empty(num_tokens, np.float32),
            np.empty(num_tokens, np.float32),
            np.empty((num_tokens, kernels.NUM_EXACT), np.float32),
        )
        self.arrays = (self._q_TK.numpy(), *self._ranges)

    def through(self, linear: Int8Linear, finish: Any, *arguments: Any) -> None:  # noqa: ANN401
        """Multiply, and let a kernel make numbers of the products."""
        shape = (len(self._q_TK), len(linear.bias_N))
        acc_TN = _SPACE.take("acc", shape, torch.int32)
        torch._int_mm(self._q_TK, linear.weight_KN, out=acc_TN)
        finish(
            acc_TN.numpy(), *self._ranges,
            linear.scale_N, linear.sum_N, linear.weight_EN, linear.bias_N, *arguments,
        )  # fmt: skip


def _num_rows(num_tokens: int) -> int:
    """Round up: a product of every other height would be compiled, and kept, for itself."""
    step = 32 if num_tokens > 32 else 8
    return -(-num_tokens // step) * step


def _attend(qkv_T3D: Array, groups: list[tuple[int, int]], num_heads: int) -> Array:
    """Attend within each text; texts of equal length share one call."""
    num_tokens, width = qkv_T3D.shape[0], qkv_T3D.shape[1] // 3
    context_TD = _SPACE.take("context", (num_tokens, width), torch.float32)
    start = 0
    for length, count in groups:
        end = start + length * count
        qkv = torch.from_numpy(qkv_T3D[start:end]).view(count, length, 3, num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mask_L = None
        if length % _LANES >= _LANES // 2:
            key, value, mask_L = _fill_lanes(key, value)
        attended = functional.scaled_dot_product_attention(query, key, value, mask_L)
        shape = (count, length, num_heads, -1)
        context_TD[start:end].view(shape).copy_(attended.transpose(1, 2))
        start = end
    return context_TD.numpy()


def _fill_lanes(
    key_BHLE: torch.Tensor, value_BHLE: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add keys that nothing attends to, up to whole vector registers.

    Numbers that do not fill one are computed one by one: 15 keys take twice the time of 16.
    """
    batch, heads, length, width = key_BHLE.shape
    filled = -(-length // _LANES) * _LANES
    shape = (2, batch, heads, filled, width)
    both = _SPACE.take("keys", shape, torch.float32)
    both[:, :, :, length:] = 0
    both[0, :, :, :length] = key_BHLE
    both[1, :, :, :length] = value_BHLE
    mask_L = torch.zeros(filled)
    mask_L[length:] = -torch.inf
    # For every query the same, in memory too: broadcast here, it would be added more slowly.
    return both[0], both[1], mask_L.expand(length, filled).contiguous()


def _pool(hidden_TD: Array, lengths: list[int], pooling: str) -> Array:
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    if pooling != "mean":
        chosen_BD: Array = hidden_TD[starts if pooling == "cls" else ends - 1]
        return chosen_BD
    mean_BD: Array = np.add.reduceat(hidden_TD, starts, axis=0)
    mean_BD /= np.asarray(lengths, np.float32)[:, None]
    return mean_BD


def _arguments(norm: _Norm) -> tuple[Array, Array, np.float32]:
    return norm.gain_D, norm.shift_D, norm.eps


def _check(tower: Tower) -> None:
    """Refuse what this forward pass would get wrong."""
    network = tower.network
    kind = type(network).__name__
    if tower.device != "cpu" or kind not in _NETWORKS:
        raise InvalidRequest(f"int8 is for {', '.join(sorted(_NETWORKS))} on a CPU")
    if network.config.hidden_act != "gelu":
        raise InvalidRequest(f"int8 knows gelu, not {network.config.hidden_act!r}")
    if network.config.is_decoder:
        raise InvalidRequest("int8 is for attention in both directions")


def _watch(tower: Tower, packed: Packed) -> dict[torch.nn.Module, Inputs]:
    """Run sample texts and note what goes into each linear layer."""
    found: dict[torch.nn.Module, Inputs] = {}
    weights_T = torch.empty(0)

    def note(linear: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        (inputs_1TK,) = arguments
        found[linear].add(inputs_1TK[0], weights_T)

    hooks = []
    for layer in tower.network.encoder.layer:
        for linear in (
            layer.attention.self.query, layer.attention.output.dense,
            layer.intermediate.dense, layer.output.dense,
        ):  # fmt: skip
            found[linear] = Inputs(linear.in_features)
            hooks.append(linear.register_forward_pre_hook(note))
    try:
        tokens = tower.sample(_SAMPLE_TEXTS, _SAMPLE_SEED)
        for rows in split_by_tokens(tokens, _SAMPLE_BATCH_TOKENS):
            texts = [tokens[row] for row in rows]
            # As in a mean over a text: a token of a short one matters more, and so do the special
            # tokens, which are in all of them.
            weights_T = torch.cat([torch.full((len(text),), 1 / len(text)) for text in texts])
            packed(texts)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _restore(network: Any, engines: Engines | None) -> list[Int8Linear]:  # noqa: ANN401
    """Return the linear layers as they were kept, or none."""
    kept = engines.read_weights() if engines else {}
    if not kept:
        return []
    return [Int8Linear.from_tensors(str(i), kept) for i in range(4 * len(network.encoder.layer))]


@torch.inference_mode()
def _calibrate(tower: Tower, packed: Packed, engines: Engines | None) -> list[Int8Linear]:
    """Round each layer's four products: queries with keys and values, out, up, down."""
    layers = tower.network.encoder.layer
    log.info("rounding %d layers to int8, once for this model", len(layers))
    inputs = _watch(tower, packed)
    linears = [linear for layer in layers for linear in _round_layer(layer, inputs)]
    if engines:
        named = [linear.to_tensors(str(i)) for i, linear in enumerate(linears)]
        engines.write_weights({name: part for parts in named for name, part in parts.items()})
    return linears


def _round_layer(layer: Any, inputs: dict[torch.nn.Module, Inputs]) -> list[Int8Linear]:  # noqa: ANN401
    attention, out, down = layer.attention.self, layer.attention.output.dense, layer.output.dense
    projections = [attention.query, attention.key, attention.value]
    qkv_weight = torch.cat([linear.weight for linear in projections])
    qkv_bias = torch.cat([linear.bias for linear in projections])
    up = layer.intermediate.dense
    return [
        quantize_linear(qkv_weight, qkv_bias, inputs[attention.query]),
        quantize_linear(out.weight, out.bias, inputs[out]),
        quantize_linear(up.weight, up.bias, inputs[up]),
        quantize_linear(down.weight, down.bias, inputs[down]),
    ]


def _single_threads() -> ThreadPoolExecutor:
    """Threads, one a core, each of which does its own products alone."""
    count = torch.get_num_threads()
    all_there = threading.Barrier(count + 1)

    def start() -> None:
        torch.set_num_threads(1)
        # Asking is what makes this thread take the number; otherwise its first product would, and
        # by then another number is set.
        torch.get_num_threads()
        all_there.wait()

    pool = ThreadPoolExecutor(count, "int8", start)
    for _ in range(count):
        pool.submit(lambda: None)
    all_there.wait()
    # Setting it is for the calling thread, but threads that come later take the last number set.
    torch.set_num_threads(count)
    return pool


def _array(parameter: torch.Tensor) -> Array:
    array: Array = parameter.detach().float().contiguous().numpy()
    return array
