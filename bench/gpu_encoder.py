"""Proves the GPU design on random weights: one script, only torch and transformers needed.

Texts lie packed in one row of tokens, attention is torch's varlen kernel, the network and its head
(pool -> pre-op -> cut -> L2 -> cast) are compiled, small batches are CUDA graphs, and only the
wanted bytes are copied back, two batches in flight. Printed are tokens/s and the share of the
device's bf16 peak (MFU), beside sentence-transformers in bf16 on the same token counts. The aim:
50 % at 512 tokens for BERT-base's size on an H200, and twice sentence-transformers. Whatever fails
prints why, and the rest goes on. The last line of stdout is one JSON object.

    python bench/gpu_encoder.py [--seconds S] [--tokens T] [--device cuda|cpu] [--no-autotune]
"""

import argparse
import contextlib
import copy
import datetime
import json
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers import AttentionInterface, BertConfig, BertModel
from transformers.masking_utils import AttentionMaskInterface

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

ATTENTION = "bench_varlen"
DIM, DTYPE = 256, torch.float16  # what a caller wants of each vector: 512 bytes
# Dense bf16, without sparsity, from the makers' data sheets; the first name that fits.
PEAKS = (
    ("B200", 2250e12), ("GH200", 989e12), ("H200", 989e12), ("H100 PCIe", 756e12),
    ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("L4", 121e12),
)  # fmt: skip
SIZES = {
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}
TINY = {"tiny": {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}}
SMALL_BUCKETS = (256, 1024, 4096)  # tokens a pass at which launches, not arithmetic, take the time
HEADLINE = ("BERT-base", "512")
_CHECKED = 8  # texts whose vectors are held against float32
Vectors = torch.Tensor
Run = Callable[["Batch"], Vectors]


@dataclass(frozen=True)
class Batch:
    """Packed texts on the host: ids_T, positions_T, text_of_T, and bounds (int32, B + 1)."""

    tensors: tuple[torch.Tensor, ...]
    lengths: list[int]


def make_batch(lengths: list[int], vocabulary: int, seed: int, pin: bool) -> Batch:
    counts = torch.tensor(lengths)
    ids = torch.randint(5, vocabulary, (sum(lengths),), generator=torch.manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])
    text_of = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    bounds = functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    made = (ids, positions, text_of, bounds)
    return Batch(tuple(t.pin_memory() if pin else t for t in made), lengths)


def lengths_of(case: str, tokens: int, longest: int) -> list[int]:
    """Fill `tokens` exactly: texts of one length, or of any from 16 to the longest."""
    if case != "mixed":
        return [int(case)] * (tokens // int(case))
    generator, lengths = torch.manual_seed(1), []
    while sum(lengths) < tokens:
        drawn = int(torch.randint(min(16, longest), longest + 1, (1,), generator=generator))
        lengths.append(min(drawn, tokens - sum(lengths)))
    return sorted(lengths)


# The way of a batch.


def attend(
    module: torch.nn.Module, query_1HTD: torch.Tensor, key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor, attention_mask: object, bounds: torch.Tensor,
    text_of_T: torch.Tensor, longest: int, **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend within each text: torch's varlen kernel, or a mask where there is no such kernel."""
    if query_1HTD.is_cuda and varlen_attn is not None:
        query, key, value = (x[0].transpose(0, 1) for x in (query_1HTD, key_1HTD, value_1HTD))
        return varlen_attn(query, key, value, bounds, bounds, longest, longest)[None], None
    mask_TT = text_of_T[:, None] == text_of_T[None]
    attended = functional.scaled_dot_product_attention(
        query_1HTD, key_1HTD, value_1HTD, attn_mask=mask_TT
    )
    return attended.transpose(1, 2), None


def finish(hidden_TD: torch.Tensor, text_of_T: torch.Tensor, bounds: torch.Tensor) -> Vectors:
    """Pool, pre-op, cut, L2, cast: compiled together, so that nothing wide is written twice."""
    lengths_B = bounds.diff()
    sums_BD = hidden_TD.new_zeros(len(lengths_B), hidden_TD.shape[1], dtype=torch.float32)
    pooled_BD = sums_BD.index_add(0, text_of_T, hidden_TD.float()) / lengths_B[:, None]
    cut_BM = functional.layer_norm(pooled_BD, pooled_BD.shape[1:])[:, :DIM]
    return functional.normalize(cut_BM, dim=1).to(DTYPE)


def make_encode(network: BertModel, longest: int) -> Callable[..., Vectors]:
    def encode(*tensors: torch.Tensor) -> Vectors:
        ids_T, positions_T, text_of_T, bounds = tensors
        hidden_1TD = network(
            input_ids=ids_T[None], position_ids=positions_T[None], attention_mask=None,
            bounds=bounds, text_of_T=text_of_T, longest=longest,
        ).last_hidden_state  # fmt: skip
        return finish(hidden_1TD[0], text_of_T, bounds)

    return encode


def packed_copy(exact: BertModel) -> BertModel:
    network = copy.deepcopy(exact).bfloat16()
    network.set_attn_implementation(ATTENTION)
    return network


def on_device(encode: Callable[..., Vectors], device: str) -> Run:
    return lambda batch: encode(*(t.to(device, non_blocking=True) for t in batch.tensors))


def captured(encode: Callable[..., Vectors], like: Batch, device: str) -> Run:
    """Record all launches once, for batches of exactly this shape; replay them in one."""
    inputs = [t.to(device) for t in like.tensors]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            encode(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = encode(*inputs)

    def replay(batch: Batch) -> Vectors:
        for target, source in zip(inputs, batch.tensors, strict=True):
            target.copy_(source, non_blocking=True)
        graph.replay()
        return output

    return replay


def wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def pump(run: Run, batches: list[Batch], seconds: float, device: str) -> float:
    """Keep two batches in flight for a while; return seconds for each batch."""
    on_gpu = device != "cpu"
    slots: list[torch.Tensor] = []
    for batch in batches[:2]:  # warm-up, and buffers of the right size
        made = run(batch)
        slots.append(torch.empty(made.shape, dtype=made.dtype, pin_memory=on_gpu))
    wait_for(device)
    flying: deque[Any] = deque()
    start, number = time.perf_counter(), 0
    while number < 3 or time.perf_counter() - start < seconds:
        slots[number % 2].copy_(run(batches[number % 2]), non_blocking=True)
        if on_gpu:
            flying.append(torch.cuda.Event())
            flying[-1].record()
            if len(flying) == 2:
                flying.popleft().synchronize()
        number += 1
    wait_for(device)
    return (time.perf_counter() - start) / number


# What it is held against.


def reference(network: BertModel, batch: Batch, device: str, texts: int) -> torch.Tensor:
    """Return float32 vectors of the first texts, one at a time, by transformers' own attention."""
    made, start = [], 0
    for length in batch.lengths[:texts]:
        ids = batch.tensors[0][start : start + length].to(device)
        hidden_TD = network(input_ids=ids[None]).last_hidden_state[0]
        bounds = torch.tensor([0, length], device=device)
        made.append(finish(hidden_TD, torch.zeros_like(ids), bounds).float())
        start += length
    return torch.cat(made)


def sentence_transformer(network: BertModel, device: str) -> Any:  # noqa: ANN401
    """Put the same weights, in bf16, into a sentence-transformers model with a toy tokenizer."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules as parts
    except ImportError:
        raise RuntimeError("not installed") from None
    from tokenizers import Tokenizer, models, pre_tokenizers

    size = network.config.vocab_size
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512
    )
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        fast.save_pretrained(folder)
        made = [parts.Transformer(folder), parts.Pooling(network.config.hidden_size)]
    return SentenceTransformer(modules=made, device=device).bfloat16().eval()


def theirs(model: Any, batch: Batch, seconds: float, device: str) -> dict[str, float]:  # noqa: ANN401
    """Return seconds a batch of its forward pass on given tokens, and of `encode` from texts."""
    ids = batch.tensors[0].split(batch.lengths)
    parts = 4 if len(set(batch.lengths)) > 1 else 1  # sorted by length, padded part by part
    padded = []
    for start in range(parts):
        rows = ids[start * len(ids) // parts : (start + 1) * len(ids) // parts]
        joined = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        padded.append({"input_ids": joined, "attention_mask": (joined > 0).long()})

    def forward(_: Batch) -> Vectors:
        sent = [{k: v.to(device) for k, v in features.items()} for features in padded]
        return torch.cat([model(features)["sentence_embedding"] for features in sent])

    found = {"forward": pump(forward, [batch, batch], seconds, device)}
    texts = [" ".join(f"w{i}" for i in row.tolist()) for row in ids]
    found["encode"] = min(
        pump(
            lambda _, n=n: model.encode(texts, batch_size=n, convert_to_tensor=True).cpu(),
            [batch, batch], seconds / 2, device,
        )
        for n in (32, 256)
    )  # fmt: skip
    return found


# The run.


def flops_a_token(config: BertConfig, length: float) -> float:
    layers, width = config.num_hidden_layers, config.hidden_size
    weights = layers * (4 * width**2 + 2 * width * config.intermediate_size)
    return 2 * weights + 4 * layers * width * length


def gemm_peak(device: str, sizes: tuple[tuple[int, int, int], ...]) -> float:
    """Return the best measured bf16 rate, FLOP/s."""
    best = 0.0
    for m, k, n in sizes:
        left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        right = torch.randn(k, n, device=device, dtype=torch.bfloat16)
        for _ in range(3):
            left @ right
        wait_for(device)
        start, runs = time.perf_counter(), 20
        for _ in range(runs):
            left @ right
        wait_for(device)
        best = max(best, 2.0 * m * k * n * runs / (time.perf_counter() - start))
    return best


@contextlib.contextmanager
def reported(what: str, failures: dict[str, str]) -> Iterator[None]:
    """Let one way fail without the others: print its reason and go on."""
    try:
        yield
    except Exception as error:
        failures[what] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        print(f"  {what}: not measured: {failures[what]}", flush=True)


class Bench:
    """One run over sizes and lengths."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device: str = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device != "cpu"
        self.failures: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.graphs: list[dict[str, Any]] = []
        sizes = ((8192, 8192, 8192), (32768, 768, 3072)) if self.on_gpu else ((64, 64, 64),)
        self.gemm = gemm_peak(self.device, sizes)
        name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        self.peak = next((peak for part, peak in PEAKS if part in name), self.gemm)
        self.conditions = {
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "device": name,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cuda": torch.version.cuda,
            "varlen_attn": "yes" if varlen_attn else "no, masks instead",
            "peak_tflops": round(self.peak / 1e12, 1) if self.on_gpu else "not measured",
            "gemm_tflops": round(self.gemm / 1e12, 1) if self.on_gpu else "not measured",
            "tokens_a_batch": options.tokens,
            "vectors": f"{DIM} numbers, {DTYPE}",
        }

    def ways(
        self, network: BertModel, longest: int
    ) -> Iterator[tuple[str, Callable[..., Vectors]]]:
        """Name the ways to compile that are tried, eager first."""
        encode = make_encode(network, longest)
        yield "eager", encode
        if not self.on_gpu:
            # The test must not wait for a compiler: the graph is traced and run as it is.
            yield "traced", torch.compile(encode, backend="eager", fullgraph=True)
            return
        modes = ["default"] + ["max-autotune-no-cudagraphs"] * (not self.options.no_autotune)
        for mode in modes:
            torch._dynamo.reset()
            yield f"compiled, {mode}", torch.compile(encode, dynamic=False, mode=mode)

    def measure(self, size: str, case: str, exact: BertModel) -> None:
        """Measure one length in every way, and sentence-transformers on the same tokens."""
        options, config = self.options, exact.config
        lengths = lengths_of(case, options.tokens, 512 if self.on_gpu else 16)
        batches = [make_batch(lengths, config.vocab_size, s, self.on_gpu) for s in (2, 3)]
        attended = sum(n * n for n in lengths) / sum(lengths)  # tokens that a token looks at
        work = flops_a_token(config, attended) * sum(lengths)
        truth = reference(exact, batches[0], self.device, _CHECKED)
        best = float("inf")
        for name, encode in self.ways(packed_copy(exact), max(lengths)):
            with reported(f"{size}, {case}, {name}", self.failures):
                run = on_device(encode, self.device)
                made = run(batches[0])[:_CHECKED].float()
                cosine = float(functional.cosine_similarity(made, truth).min())
                seconds = pump(run, batches, options.seconds, self.device)
                best = min(seconds, best)
                self.add((size, case, f"ours, {name}"), seconds, work, {"min_cosine": cosine})
        with reported(f"{size}, {case}, sentence-transformers", self.failures):
            model = sentence_transformer(exact, self.device)
            for name, seconds in theirs(model, batches[0], options.seconds, self.device).items():
                way = f"sentence-transformers, {name}"
                self.add((size, case, way), seconds, work, {"ours_is_times": seconds / best})

    def add(
        self, key: tuple[str, str, str], seconds: float, work: float, more: dict[str, float]
    ) -> None:
        """Keep and print a row; rates of the CPU's smoke run mean nothing and are left out."""
        rates: dict[str, float] = {}
        if self.on_gpu:
            rates["tokens_per_s"] = round(self.options.tokens / seconds)
            rates["mfu"] = round(work / seconds / self.peak, 4)
            rates["gemm_share"] = round(work / seconds / self.gemm, 4)
        if not self.on_gpu:
            more.pop("ours_is_times", None)
        row = dict(zip(("size", "length", "way"), key, strict=True)) | rates | more
        self.rows.append(row)
        shown = "not measured" if not rates else (
            f"{rates['tokens_per_s']:>12,} tokens/s  MFU {rates['mfu']:6.1%}  of the measured "
            f"peak {rates['gemm_share']:6.1%}"
        )  # fmt: skip
        ends = "".join(f"  {name.replace('_', ' ')} {value:.6g}" for name, value in more.items())
        print(f"  {key[0]:<10}{key[1]:>6}  {key[2]:<38}{shown}{ends}", flush=True)

    def measure_small(self, size: str, tokens: int, exact: BertModel) -> None:
        """Show for a small batch what a CUDA graph saves of the launches."""
        batches = [
            make_batch([32] * (tokens // 32), exact.config.vocab_size, s, True) for s in (2, 3)
        ]
        torch._dynamo.reset()
        encode = torch.compile(make_encode(packed_copy(exact), 32), dynamic=False)
        runs = {
            "compiled_ms": on_device(encode, self.device),
            "graph_ms": captured(encode, batches[0], self.device),
        }
        left, right = (run(batches[1]).float() for run in runs.values())
        cosine = float(functional.cosine_similarity(left, right).min())
        row = {"size": size, "tokens": tokens, "min_cosine": cosine} | {
            name: round(1000 * pump(run, batches, self.options.seconds / 2, self.device), 3)
            for name, run in runs.items()
        }
        self.graphs.append(row)
        print(f"  small batch: {json.dumps(row)}", flush=True)

    @torch.inference_mode()
    def run(self) -> dict[str, Any]:
        for name, value in self.conditions.items():
            print(f"{name.replace('_', ' '):<16}{value}")
        cases = ("32", "128", "512", "mixed") if self.on_gpu else ("8", "mixed")
        heads, vocabulary = (12, 30522) if self.on_gpu else (4, 512)
        for size, widths in (SIZES if self.on_gpu else TINY).items():
            # Wider than the usual 0.02: texts of random weights shall differ.
            config = BertConfig(
                vocab_size=vocabulary, num_attention_heads=heads, initializer_range=0.05, **widths
            )
            torch.manual_seed(0)
            exact = BertModel(config, add_pooling_layer=False).to(self.device).eval()
            for case in cases:
                with reported(f"{size}, {case}", self.failures):
                    self.measure(size, case, exact)
            for tokens in SMALL_BUCKETS if self.on_gpu else ():
                with reported(f"{size}, batches of {tokens} tokens", self.failures):
                    self.measure_small(size, tokens, exact)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Put the headline first; what was not measured is null."""
        measured = [r for r in self.rows if (r["size"], r["length"]) == HEADLINE]
        ours = [r for r in measured if "mfu" in r and r["way"].startswith("ours")]
        best = max(ours, key=lambda r: r["mfu"], default={})
        times = [r["ours_is_times"] for r in measured if r["way"].endswith("forward")]
        return {
            "bench": "gpu_encoder",
            "measured": self.on_gpu,
            **{name: best.get(name) for name in ("tokens_per_s", "mfu", "gemm_share")},
            "vs_sentence_transformers": times[0] if times else None,
            "min_cosine": min(
                (r["min_cosine"] for r in self.rows if "min_cosine" in r), default=None
            ),
            **self.conditions,
            "rows": self.rows,
            "cuda_graphs": self.graphs,
            "not_measured": self.failures,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way and length")
    parser.add_argument("--tokens", type=int, help="in a batch; 32768, on a CPU 128")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--no-autotune", action="store_true", help="saves minutes of compiling")
    options = parser.parse_args()
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    options.tokens = options.tokens or (32768 if on_gpu else 128)
    options.seconds = options.seconds if on_gpu else 0.0
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    AttentionInterface.register(ATTENTION, attend)
    # Boundaries come with the call, so no mask is built.
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    print(json.dumps(Bench(options).run()))


if __name__ == "__main__":
    main()
