"""Static models: sentence-transformers called directly against our service over gRPC.

A static model is a table of token vectors; a text's vector is the mean of its tokens' rows, so
tokenising and moving bytes is all the work. The folder is made here, offline: MiniLM's tokenizer
and a seeded random table. What the vectors mean does not matter to speed.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.served import ServedFailed, Server
from bench.workers import BUILD, PeerFailed, Worker

DIM = 1024
TEXTS_PER_REQUEST = 64
_CLIENTS = (4, 16)
_COPIES = 4  # of all texts: a round shall last about a second
_SEED = 3


@dataclass(frozen=True, slots=True)
class StaticResult:
    """Texts a second of both, medians over the rounds; or why there are none."""

    ours: float = 0.0
    theirs: float = 0.0
    clients: int = 0
    settings: str = ""
    min_cosine: float = 0.0
    failure: str = ""


def make_folder(model: Path, dim: int) -> Path:
    """Build a Sentence Transformers folder with one StaticEmbedding."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    folder = BUILD / "made" / f"static-{dim}"
    if not (folder / "modules.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        weights = torch.randn(
            tokenizer.get_vocab_size(), dim, generator=torch.Generator().manual_seed(_SEED)
        )
        module = StaticEmbedding(tokenizer, embedding_weights=weights.numpy())
        SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return folder


def compare_static(
    texts: dict[str, list[str]],
    sample: Path,
    model: Path,
    rounds: int,
    say: Callable[[str], None],
) -> StaticResult:
    folder = make_folder(model, DIM)
    listed = [text for part in texts.values() for text in part]
    path, vectors = BUILD / "run" / "static.json", BUILD / "run" / "static"
    path.write_text(json.dumps(listed * _COPIES))
    worker = Worker(
        "static", "sentence-transformers", "sbert", "static", folder, sample, sys.maxsize
    )
    try:
        worker.start()
        with Server(folder) as server:

            def ours(clients: int, keep: Path | None = None) -> float:
                loaded = server.load("grpc", path, clients, TEXTS_PER_REQUEST, vectors=keep)
                return loaded.texts_per_s

            clients = max(_CLIENTS, key=ours)
            rates: dict[str, list[float]] = {"ours": [], "theirs": []}
            for number in range(rounds):
                keep = [Path(f"{vectors}-{name}.npy") if not number else None for name in rates]
                rates["ours"].append(ours(clients, keep[0]))
                rates["theirs"].append(len(listed) * _COPIES / worker.encode(path, keep[1]))
                say(f"static: ours {rates['ours'][-1]:.0f}, theirs {rates['theirs'][-1]:.0f}/s")
    except (PeerFailed, ServedFailed) as error:
        say(f"static: not measured: {error}")
        return StaticResult(failure=str(error))
    finally:
        worker.end()
    return StaticResult(
        statistics.median(rates["ours"]), statistics.median(rates["theirs"]), clients,
        worker.settings, _min_cosine(*(Path(f"{vectors}-{name}.npy") for name in rates)),
    )  # fmt: skip


def _min_cosine(left: Path, right: Path) -> float:
    ours_BD, theirs_BD = np.load(left), np.load(right)
    norms = np.linalg.norm(ours_BD, axis=1) * np.linalg.norm(theirs_BD, axis=1)
    return float(((ours_BD * theirs_BD).sum(1) / norms).min())
