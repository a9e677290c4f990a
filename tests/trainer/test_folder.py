"""Folders of data: as Hugging Face's `datasets` wrote them, and as people lay them out."""

import json
import shutil
from pathlib import Path

import pytest

from services.shared.errors import InvalidRequest
from services.trainer.data.dataset import read_dataset
from services.trainer.data.examples import Labelled
from services.trainer.data.folder import list_folder
from services.trainer.data.pairs import Pair

SAVED = Path(__file__).parent / "datasets"
PAIRS = [Pair(f"q{i}", f"p{i}", (f"n{i}", f"m{i}")) for i in range(6)]


def read(folder, param="training_file"):
    return read_dataset(list_folder(folder, param), {}, param)


def test_what_datasets_saved_is_read():
    """All shards in order, named with their rows."""
    data = read(SAVED / "shards")
    assert data.examples == PAIRS
    assert data.places.name(4) == "data-00001-of-00002.arrow:2"


def test_a_saved_split_is_chosen_by_what_it_is_for():
    """train to learn from, validation to measure on; or each by its own path."""
    assert read(SAVED / "splits").examples == PAIRS
    assert read(SAVED / "splits", "validation_file").examples == PAIRS[:4]
    assert read(SAVED / "splits" / "train").examples == PAIRS


def test_classes_are_kept_by_their_numbers():
    """As datasets stores them."""
    assert read(SAVED / "labelled").examples == [Labelled(f"t{i}", str(i % 2)) for i in range(6)]


def shards(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"anchor": f"{number} {i}", "positive": "p"} for i in range(4)]
        path.write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(
    ("names", "param", "chosen"),
    [
        (["b.jsonl", "a.jsonl"], "training_file", ["a.jsonl", "b.jsonl"]),
        (["data/train-0.jsonl", "data/test-0.jsonl"], "training_file", ["data/train-0.jsonl"]),
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "validation_file", ["dev.jsonl"]),
        (["my_train.jsonl", "evaluation.jsonl"], "validation_file", ["evaluation.jsonl"]),
        (["trainer.jsonl", "latest.jsonl"], "training_file", ["latest.jsonl", "trainer.jsonl"]),
    ],
)
def test_shards_are_chosen_by_their_split(tmp_path, names, param, chosen):
    """Where names tell splits apart; scripts and hidden files are no data."""
    shards(tmp_path, *names, ".hidden.jsonl")
    (tmp_path / "set.py").write_text("raise SystemExit('never run')")
    assert [file.name for file in list_folder(tmp_path, param)] == chosen


def test_a_folder_without_data_is_refused(tmp_path):
    """Also one of two formats, one with scripts only, or without the split that is wanted."""
    (tmp_path / "set.py").write_text("")
    with pytest.raises(InvalidRequest, match="must hold what save_to_disk wrote"):
        list_folder(tmp_path, "training_file")
    shards(tmp_path, "test.jsonl")
    with pytest.raises(InvalidRequest, match="tell splits apart"):
        list_folder(tmp_path, "training_file")
    shutil.rmtree(tmp_path)
    shards(tmp_path, "a.jsonl", "b.csv")
    with pytest.raises(InvalidRequest, match="one format"):
        list_folder(tmp_path, "training_file")


@pytest.mark.parametrize(
    "state",
    [
        {"_data_files": [{"filename": "../other/data.arrow"}]},
        {"_data_files": [{"filename": "/etc/data.arrow"}]},
        {"_data_files": [{"filename": "state.json"}]},
        {"_data_files": [{"filename": "away.arrow"}]},
        {"_data_files": [{"filename": "gone.arrow"}]},
        {"_data_files": []},
        {"_data_files": [{"filename": "d.arrow"}], "_indices_files": [{"filename": "i.arrow"}]},
        ["_data_files"],
        {},
    ],
)
def test_a_state_that_leads_away_is_refused(tmp_path, state):
    """No name, and no link, leads out of the folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "away.arrow").write_bytes(b"")
    (folder / "d.arrow").write_bytes(b"")
    (folder / "away.arrow").symlink_to(tmp_path / "away.arrow")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidRequest, match="training_file: "):
        list_folder(folder, "training_file")


def test_a_link_out_of_a_folder_of_shards_is_refused(tmp_path):
    """As of a saved one."""
    folder = shards(tmp_path / "set", "a.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    (folder / "b.jsonl").symlink_to(tmp_path / "b.jsonl")
    with pytest.raises(InvalidRequest, match="not in it"):
        list_folder(folder, "training_file")
