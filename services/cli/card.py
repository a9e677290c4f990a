"""The command that measures a model's card: reads the sample, writes the card, shows the table.

In: a model and a file of texts or pairs. Out: `matryoshka.json` in the model's folder, or in a
copy of it. The measuring itself is `services.trainer.results.measure`.
"""

import json
import os
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.shared.card import Card, write_card
from services.shared.errors import InvalidRequest
from services.shared.folder import BASE_MODEL, DEFAULT_MODEL, is_hub_id, locate
from services.shared.safety import check_folder
from services.trainer.data.dataset import read_pairs
from services.trainer.results.measure import Sample, copy_with_card, measure_card

_JSONL_SUFFIXES = {".jsonl", ".ndjson"}
_ACCEPTED = 'each line must be {"text": "..."}, or each {"anchor": "...", "positive": "..."}'
_JUDGED_BY = {"labels": "labelled pairs", "neighbours": "the full size's own ranking"}


def measure(source: str, path: Path, dims: list[int], output: Path | None) -> None:
    """Measure a model and write its card.

    Args:
        source: a model folder, a hub id, or the packaged default.
        path: a text on each line, or JSON lines of texts or of pairs.
        dims: sizes; empty: the model's own, or powers of two.
        output: a new folder for a copy of the model with the card; None: into the model's folder.

    Raises:
        ServiceError: one sentence that says what is wrong.
    """
    folder = _check_model(source)
    sample = read_sample(path)
    _check_output(source, output)
    with Progress(transient=True) as progress:
        task = progress.add_task("texts encoded", total=None)
        card = measure_card(
            source, sample, dims,
            lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if output is None:
        write_card(folder, card)
    else:
        copy_with_card(source, output, card)
    _show(card, output or folder)


def _check_model(source: str) -> Path:
    """Return where a model is, if it is here; a hub id is looked for when all else is right."""
    folder = Path(source).expanduser()
    if source in (DEFAULT_MODEL, BASE_MODEL) or (not folder.is_dir() and is_hub_id(source)):
        return folder
    check_folder(locate(source))
    return folder


def _check_output(source: str, output: Path | None) -> None:
    if output is not None and output.exists():
        raise InvalidRequest(f"{output} is there already; give --output the name of a new folder")
    folder = Path(source).expanduser()
    if output is None and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InvalidRequest(
            f"{source!r} is not a folder of yours to write to; name a new one with --output"
        )


def read_sample(path: Path) -> Sample:
    """Read texts or pairs.

    Raises:
        InvalidRequest: names the file and the line, and says what is accepted.
    """
    if not path.is_file():
        raise InvalidRequest(f"no file at {path}; give one text a line, or JSON lines: {_ACCEPTED}")
    if path.suffix not in _JSONL_SUFFIXES:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return Sample(path.name, texts=[line.strip() for line in lines if line.strip()])
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and _is_pair(rows[0][1]):
        return Sample(path.name, pairs=read_pairs(path, path.name))
    return Sample(path.name, texts=[_read_text(path.name, *row) for row in rows])


def _is_pair(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "anchor" in value


def _read_text(name: str, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(f"{name}:{number}: {_ACCEPTED}")
    # json accepts lone surrogates, which no tokenizer can encode.
    return text.encode("utf-8", "replace").decode()


def _show(card: Card, folder: Path) -> None:
    quality = card.quality
    assert quality
    full = quality.after[-1].score
    table = Table(title=f"{card.id} on {quality.data}, judged by {_JUDGED_BY[quality.judged_by]}")
    for column in (
        "dimensions",
        quality.metric,
        "retained",
        "bytes as float",
        "as int8",
        "as bits",
    ):
        table.add_column(column, justify="right")
    for score in quality.after:
        table.add_row(
            str(score.dim), f"{score.score:.3f}", f"{score.score / full:.3f}" if full > 0 else "",
            str(4 * score.dim), str(score.dim), str(score.dim // 8) if score.dim % 8 == 0 else "",
        )  # fmt: skip
    Console().print(table)
    print(f"wrote the card of space {card.space_id} to {folder}")
