"""Real pairs, a real small model of random weights, and jobs in folders of their own."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from services.shared.folder import DEFAULT_MODEL, locate
from services.trainer.data.examples import Example, write_examples
from services.trainer.data.pairs import Kind, Pair
from services.trainer.jobs.hyperparameters import Wanted, fill
from services.trainer.jobs.spec import TRAINING, Spec, spec_path
from services.trainer.results.layout import full_width

WORDS = [
    "red",
    "green",
    "blue",
    "fast",
    "slow",
    "cat",
    "dog",
    "bird",
    "house",
    "tree",
    "river",
    "stone",
    "opens",
    "closes",
    "sees",
    "finds",
]


def stdlib_pairs(wanted: int) -> list[Pair]:
    """Docstrings of the standard library: summary line -> body, the same on every run."""
    pairs: dict[str, Pair] = {}
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                summary, _, body = (ast.get_docstring(node) or "").partition("\n\n")
                if 20 < len(summary) < 200 and len(body) > 40:
                    pairs.setdefault(summary, Pair(summary, body[:300]))
        if len(pairs) >= wanted:
            break
    return list(pairs.values())[:wanted]


def write_pairs(path: Path, pairs: Sequence[Example]) -> Path:
    write_examples(path, pairs)
    return path


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small matrices gain nothing from more threads, and lose much when cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return stdlib_pairs(300)


@pytest.fixture(scope="session")
def default_model() -> Path:
    return locate(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A BERT of two layers, 32 numbers wide, with random weights and a vocabulary of words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)]
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text("\n".join(tokens))
    tokenizer = BertTokenizerFast(vocab=str(folder / "words" / "vocab.txt"))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=48)
    modules = [transformer, Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_pairs() -> list[Pair]:
    return make_tiny_pairs()


def make_tiny_pairs() -> list[Pair]:
    """Each pair shares one odd word, so there is something to learn."""
    return [
        Pair(f"{a} {b} sees", f"the {b} {a} opens {c}")
        for i, a in enumerate(WORDS[:8])
        for j, (b, c) in enumerate(zip(WORDS[8:], WORDS[::-1], strict=False))
        if (i + j) % 2
    ]


def make_many_pairs() -> list[Pair]:
    """More of them than the tiny model has numbers, so that a training learns axes to start on."""
    return [Pair(f"{a} {b} sees", f"the {b} {a} opens") for a, b in permutations(WORDS, 2)]


def make_job(
    folder: Path,
    base: Path,
    pairs: Sequence[Example],
    checkpoint_steps: int = 5,
    kind: Kind = "pairs",
    **wanted,
) -> Path:
    """Write a job's folder as the service does."""
    folder.mkdir(parents=True)
    write_pairs(folder / TRAINING, pairs)
    hyper = fill(Wanted(**wanted), full_width(base), len(pairs) - len(pairs) // 10)
    Spec(
        base_dir=str(base), base_model=base.name, model_id="ft:base:test:0001",
        data_name="pairs.jsonl", kind=kind, hyperparameters=hyper, threads=1,
        checkpoint_steps=checkpoint_steps,
    ).write(spec_path(folder))  # fmt: skip
    return folder


def start_job(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "services.trainer.training.run", str(folder), *arguments]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a model folder."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)}:{name}"] = tensor
    return found
