"""Pictures among the pairs: how they come, what is wrong with them, and what is learned of them."""

import base64
import csv
import io
import json

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from services.shared.blobs import Blobs
from services.shared.card import read_card
from services.shared.database import Database
from services.shared.errors import InvalidRequest
from services.shared.files import Files
from services.shared.loading import load_modules
from services.shared.model import TextModel
from services.shared.vectors import normalize
from services.trainer.data.dataset import SourceFile, read_dataset
from services.trainer.data.examples import read_examples, write_examples
from services.trainer.data.folder import list_folder
from services.trainer.data.pairs import Pair, digest
from services.trainer.data.pictures import PICTURES, Picture, Pictures
from services.trainer.jobs.create import Drafts, JobRequest
from services.trainer.jobs.hyperparameters import EarlyStopping, Lora, Wanted
from services.trainer.jobs.spec import TRAINING, Mining, Result, result_path
from services.trainer.results.evaluate import evaluate
from services.trainer.results.layout import read_modules, takes_pictures
from services.trainer.settings import TrainerSettings
from services.trainer.training.encode import encode
from services.trainer.training.interrupt import Interrupt, Interrupted
from services.trainer.training.passes import Passes
from services.trainer.training.work import run_job
from tests.families import picture_checkpoints
from tests.families.test_images import huge_png
from tests.trainer.conftest import WORDS, weights
from tests.trainer.test_methods import same
from tests.trainer.test_passes import gradients

MANY_BYTES = 10**7


def picture(number: int, kind="PNG", size=(24, 16)) -> bytes:
    """A file of six fields in colours of chance."""
    colours = np.random.default_rng(number).integers(0, 255, (2, 3, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of texts and pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "vdr"
    folder.mkdir()
    picture_checkpoints.qwen3_vl(folder)
    return folder


@pytest.fixture(scope="module")
def base_model(base):
    return TextModel(base, "float32", "cpu")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(files, folder, columns=None):
    return read_dataset(
        files, columns or {}, "training_file", pictures=Pictures(folder / PICTURES, MANY_BYTES)
    )


def as_jsonl(path, files):
    write_rows(
        path / "a.jsonl",
        [{"anchor": f"q{n}", "positive": {"image": b64(data)}} for n, data in enumerate(files)],
    )


def as_data_urls(path, files):
    write_rows(
        path / "a.jsonl",
        [
            {"anchor": f"q{n}", "positive": f"data:image/png;base64,{b64(data)}"}
            for n, data in enumerate(files)
        ],
    )


def as_csv(path, files):
    with (path / "a.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["anchor", "positive"])
        for n, data in enumerate(files):
            table.writerow([f"q{n}", f"data:image/png;base64,{b64(data)}"])


def as_table(files):
    """As the `datasets` library stores its Image feature."""
    rows = [
        {"anchor": f"q{n}", "positive": {"bytes": data, "path": f"{n}.png"}}
        for n, data in enumerate(files)
    ]
    return pyarrow.Table.from_pylist(rows)


def as_parquet(path, files):
    parquet.write_table(as_table(files), path / "a.parquet")


def as_arrow(path, files):
    table = as_table(files)
    with pyarrow.ipc.new_stream(str(path / "a.arrow"), table.schema) as stream:
        stream.write_table(table)


def as_paths(path, files):
    (path / "data").mkdir()
    for n, data in enumerate(files):
        (path / "data" / f"{n}.png").write_bytes(data)
    rows = [{"anchor": f"q{n}", "positive": {"path": f"{n}.png"}} for n, _ in enumerate(files)]
    write_rows(path / "data" / "a.jsonl", rows)


@pytest.mark.parametrize("write", [as_jsonl, as_data_urls, as_csv, as_parquet, as_arrow, as_paths])
def test_pictures_come_in_every_format(tmp_path, write):
    """The same pairs, whatever holds them; a job's folder keeps the files."""
    files = [picture(n, kind) for n, kind in enumerate(["PNG", "JPEG", "WEBP", "PNG"])]
    source, job = tmp_path / "source", tmp_path / "job"
    source.mkdir(), job.mkdir()
    write(source, files)
    data = read(list_folder(source, "training_file"), job)
    assert [pair.anchor for pair in data.examples] == ["q0", "q1", "q2", "q3"]
    assert [pair.positive.path.read_bytes() for pair in data.examples] == files
    assert {path.name for path in (job / PICTURES).iterdir()} == {
        pair.positive.digest for pair in data.examples
    }


def test_any_side_of_a_pair_may_be_a_picture(tmp_path):
    """Anchor, positives and negatives; what is written is what is read, and the digest tells."""
    one, two, three = ({"image": b64(picture(n))} for n in range(3))
    rows = [
        {"anchor": one, "positive": ["text", two], "negatives": [three, "other"], "slice": "de"}
    ] * 4
    path = write_rows(tmp_path / "a.jsonl", rows)
    data = read([SourceFile(path, "a.jsonl")], tmp_path)
    first, second = data.examples[:2]
    assert isinstance(first.anchor, Picture)
    assert first.positive == "text"
    assert second.positive == Picture(second.positive.digest, tmp_path)
    assert [str(item)[:8] for item in first.negatives] == ["picture ", "other"]
    assert len({first.anchor, second.positive, first.negatives[0], *data.examples}) == 5
    write_examples(tmp_path / TRAINING, data.examples)
    kept = read_examples(tmp_path / TRAINING, "pairs")
    assert list(kept) == data.examples
    assert kept[1].positive.path.read_bytes() == picture(1)
    assert digest(kept) == digest(data.examples) != digest([Pair("a", "b")])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"image": b64(b"no picture")}, "whole PNG, JPEG or WebP"),
        ({"image": b64(picture(0)[:-40])}, "whole PNG, JPEG or WebP"),
        ({"image": b64(picture(0, "BMP"))}, "whole PNG, JPEG or WebP"),
        ({"image": b64(huge_png(7_000, 7_000))}, "at most 40000000 pixels"),
        ({"image": "https://example.com/a.png"}, "neither a text nor a picture"),
        ({"image": "no base64"}, "neither a text nor a picture"),
        ({"image": 7}, "neither a text nor a picture"),
        ({"other": "x"}, "is not a string"),
        ({"bytes": None, "path": None}, "neither a text nor a picture"),
        ("data:image/png,raw", "neither a text nor a picture"),
        ({"path": "https://example.com/a.png"}, "not in the folder of the data"),
        ({"path": "../outside.png"}, "not in the folder of the data"),
        ({"path": "link.png"}, "not in the folder of the data"),
        ({"path": "/etc/passwd"}, "not in the folder of the data"),
        ({"path": "gone.png"}, "not in the folder of the data"),
        ({"path": "\0"}, "not in the folder of the data"),
        ({"path": "x" * 5000}, "not in the folder of the data"),
        ({"path": "pairs.jsonl"}, "whole PNG, JPEG or WebP"),
    ],
)
def test_what_is_wrong_with_a_picture_is_told_with_its_line(tmp_path, value, problem):
    """File, row, field and reason; nothing of it is kept."""
    source, job = tmp_path / "source", tmp_path / "job"
    source.mkdir(), job.mkdir()
    (tmp_path / "outside.png").write_bytes(picture(1))
    (source / "link.png").symlink_to(tmp_path / "outside.png")
    write_rows(source / "pairs.jsonl", [{"anchor": "a", "positive": value}])
    with pytest.raises(InvalidRequest) as caught:
        read(list_folder(source, "training_file"), job)
    assert caught.value.message.startswith('pairs.jsonl:1: "positive" ')
    assert problem in caught.value.message
    assert not (job / PICTURES).exists()


def test_a_file_by_itself_has_no_paths(tmp_path):
    """An upload names no file of the machine, not even one beside it."""
    (tmp_path / "a.png").write_bytes(picture(0))
    path = write_rows(tmp_path / "a.jsonl", [{"anchor": "a", "positive": {"path": "a.png"}}])
    with pytest.raises(InvalidRequest, match="not in the folder of the data"):
        read([SourceFile(path, "a.jsonl")], tmp_path)


def test_pictures_are_for_pairs(tmp_path):
    """Of other kinds the row is told."""
    image = {"image": b64(picture(0))}
    for row in ({"text": image, "label": 1}, {"first": image, "second": "b", "score": 1}):
        path = write_rows(tmp_path / "a.jsonl", [row])
        with pytest.raises(InvalidRequest, match='a.jsonl:1: ".*" is a picture; only pairs'):
            read([SourceFile(path, "a.jsonl")], tmp_path)


def test_pictures_have_a_bound_together(tmp_path):
    """Counted once each."""
    one = {"anchor": "a", "positive": {"image": b64(picture(0))}}
    two = {"anchor": "a", "positive": {"image": b64(picture(1))}}
    path, room = tmp_path / "a.jsonl", len(picture(0)) + 10
    for rows, fits in (([one] * 4, True), ([one] * 3 + [two], False)):
        write_rows(path, rows)
        files = [SourceFile(path, "a.jsonl")]
        pictures = Pictures(tmp_path / PICTURES, room)
        if fits:
            read_dataset(files, {}, "training_file", pictures=pictures)
            continue
        with pytest.raises(InvalidRequest, match=f"a.jsonl:4: pictures must have at most {room}"):
            read_dataset(files, {}, "training_file", pictures=pictures)


# Each picture is asked for by words of its own.
ROWS = [
    {
        "anchor": f"{WORDS[n % 16]} {WORDS[n // 16]} {WORDS[(5 * n) % 16]}",
        "positive": {"image": b64(picture(n))},
        **({"negatives": [{"image": b64(picture(n + 1))}]} if n % 3 == 0 else {}),
    }
    for n in range(26)
]


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """Makes a job's folder of rows, or refuses it, as the service does."""
    root = tmp_path_factory.mktemp("drafts")
    (root / "jobs").mkdir()
    database = Database(f"sqlite:///{root / 'files.sqlite'}")
    database.open()
    settings = TrainerSettings(data_dir=root, sources=str(root), threads=1, checkpoint_steps=5)
    files = Files(database, Blobs(str(root / "blobs"), MANY_BYTES))
    drafts = Drafts(files, root / "jobs", settings)

    def make(base, rows, validation=(), mining=None, **wanted):
        paths = [write_rows(root / f"{name}.jsonl", given) if given else "" for name, given in
                 (("pairs", rows), ("validation", validation))]  # fmt: skip
        request = JobRequest(
            base_model=str(base), training_file=str(paths[0]), validation_file=str(paths[1]),
            suffix="", hyperparameters=Wanted(batch_size=8, **wanted), mining=mining,
        )  # fmt: skip
        return root / "jobs" / drafts.make(request).id

    make.jobs = root / "jobs"
    yield make
    database.close()


@pytest.mark.parametrize("method", ["static", "distill"])
def test_a_method_that_cannot_take_pictures_says_so(draft, base, method):
    """In one sentence with the place of the first picture; nothing is left of the job."""
    before = set(draft.jobs.iterdir())
    with pytest.raises(InvalidRequest) as caught:
        draft(base, [{"anchor": "a", "positive": "b"}, *ROWS], method=method)
    assert caught.value.message == (
        f"pairs.jsonl:2: METHOD_{method.upper()} learns from texts alone; pictures are for "
        "METHOD_ADAPTOR, METHOD_LORA, METHOD_FULL"
    )
    assert caught.value.param == "training_file"
    assert set(draft.jobs.iterdir()) == before


def test_a_base_that_reads_texts_alone_says_so(draft, tiny_model):
    """Before anything is queued, of the validation file too."""
    with pytest.raises(InvalidRequest, match=r"^pairs.jsonl:1: the base model reads texts alone"):
        draft(tiny_model, ROWS)
    texts = [{"anchor": f"a{n}", "positive": f"b{n}"} for n in range(5)]
    with pytest.raises(InvalidRequest, match=r"^validation.jsonl:1: the base") as caught:
        draft(tiny_model, texts, ROWS)
    assert caught.value.param == "validation_file"


def test_the_files_of_a_model_say_whether_it_takes_pictures(base, base_model, tiny_model):
    """As the loaded model does."""
    assert takes_pictures(base) is base_model.takes_images is True
    assert takes_pictures(tiny_model) is TextModel(tiny_model, "float32").takes_images is False


def test_pictures_are_the_same_by_their_content(draft, base):
    """Duplicates, false negatives and leaks are found among them as among texts."""
    asked = {"anchor": {"image": b64(picture(90))}, "positive": "one"}
    own = {"anchor": "x", "positive": {"image": b64(picture(91))}}
    rows = [
        *ROWS[:6], ROWS[2],  # a duplicate
        own, own | {"positive": {"image": b64(picture(92))}, "negatives": [own["positive"]]},
        {"anchor": "a leak", "positive": asked["anchor"]},
    ]  # fmt: skip
    folder = draft(base, rows, [asked, *ROWS[10:14]])
    found = json.loads((folder / "data.json").read_bytes())
    assert (found["rows"], found["kept"]) == (10, 8)
    assert (found["duplicates"], found["false_negatives"], found["leaks"]) == (1, 1, 1)
    assert found["leak_places"] == ["pairs.jsonl:10 is in validation.jsonl:1"]


@pytest.fixture(scope="module")
def adapted(draft, base):
    """An adaptor job with mined negatives, done."""
    folder = draft(
        base, ROWS, mining=Mining(negatives=2), head="dense", steps=200, learning_rate=3e-2
    )
    run_job(folder, Interrupt())
    return folder


def test_a_head_is_learned_on_pictures(adapted, base_model):
    """It finds the training pairs' pictures by their texts, at each size, as the base does not."""
    result = Result.read(result_path(adapted))
    assert [scores.dim for scores in result.quality.after] == [16, 32]
    pairs = read_examples(adapted / TRAINING, "pairs")
    relevant = [{row: 1.0} for row in range(len(pairs))]
    before, after = (
        evaluate(
            encode(model, [pair.anchor for pair in pairs], "query"),
            encode(model, [pair.positive for pair in pairs], "document"), relevant, (16, 32),
        )
        for model in (base_model, TextModel(adapted / "model", "float32"))
    )  # fmt: skip
    assert all(new.ndcg10 > old.ndcg10 + 0.2 for new, old in zip(after, before, strict=True))


def test_every_picture_is_encoded_as_the_base_does(adapted, base_model):
    """By its own tower, once; what is kept is what the head is learned on."""
    kept = np.load(next((adapted / "vectors" / "documents").iterdir()))
    pairs = read_examples(adapted / TRAINING, "pairs")
    positives = [
        base_model.read_image(pair.positive.path.read_bytes(), "document") for pair in pairs
    ]
    cosines = normalize(kept) @ normalize(base_model.encode(positives)).T
    assert (cosines.max(axis=0) > 0.999).all()


def test_the_encoder_s_model_reads_pictures_after_training(adapted, base_model):
    """The base's vectors, through the head; and the library makes the same of the folder."""
    model = TextModel(adapted / "model", "float32")
    assert model.takes_images
    assert takes_pictures(adapted / "model")
    data = [picture(n) for n in range(6)]
    found = model.encode([*model.tokenize(["a", "b c"]), *map(model.read_image, data)])
    before = base_model.encode(
        [*base_model.tokenize(["a", "b c"]), *map(base_model.read_image, data)]
    )
    head = load_file(read_modules(adapted / "model")[-2][1] / "model.safetensors")["linear.weight"]
    np.testing.assert_allclose(found, normalize(before @ head.numpy().T), atol=1e-4)
    assert not np.allclose(found, before, atol=1e-2)
    oracle = load_modules(adapted / "model", "cpu")
    theirs = oracle.encode([Image.open(io.BytesIO(one)).convert("RGB") for one in data])
    np.testing.assert_allclose(found[2:], theirs, atol=1e-4)
    assert read_card(adapted / "model").dims == (16, 32)


class StopInTraining(Interrupt):
    """Asks to stop after the third step."""

    steps = 0

    @property
    def is_set(self):
        self.steps += 1
        return self.steps == 3


def trained(base, folder):
    """The names of the weights that a job has changed."""
    before, made = weights(base), weights(folder / "model")
    return {name for name in before if not torch.equal(made[name], before[name])}


def test_all_weights_are_trained_on_pictures(draft, base):
    """Of both modalities; stopped and gone on with, it ends in the same weights."""
    calm, torn = (
        draft(base, ROWS[:16], steps=5, method="full", learning_rate=1e-3) for _ in range(2)
    )
    run_job(calm, Interrupt())
    assert any("visual" in name for name in trained(base, calm))
    assert any("language_model" in name for name in trained(base, calm))
    with pytest.raises(Interrupted):
        run_job(torn, StopInTraining())
    run_job(torn, Interrupt())
    assert same(weights(torn / "model"), weights(calm / "model"))


def test_lora_is_trained_on_pictures(draft, base):
    """In the linear layers that were chosen, here of the part that sees; looked at meanwhile."""
    folder = draft(
        base, ROWS[:20], steps=6, method="lora", learning_rate=1e-2,
        lora=Lora(rank=2, alpha=4, targets=("qkv",)),
        early_stopping=EarlyStopping(dim=16, every_steps=3, patience=4),
    )  # fmt: skip
    run_job(folder, Interrupt())
    names = trained(base, folder)
    assert len(names) == 2
    assert all("visual" in name and name.endswith("qkv.weight") for name in names)


def test_parts_with_pictures_give_the_gradients_of_the_whole(base_model):
    """A batch of texts and pictures, cut or not."""
    tokens = base_model.tokenize(["a", "the house " * 9, "of words"])
    batch = [*tokens, *(base_model.read_image(picture(n)) for n in range(3))]
    base_model.transformer.eval()
    whole, expected = gradients(base_model, Passes(base_model, 10**6), batch)
    found, parts = gradients(base_model, Passes(base_model, 60), batch)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.numpy(), base_model.encode(batch), rtol=1e-4, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_picture_that_does_not_suit_the_model_is_named(draft, base):
    """What only the loaded model can tell ends the job, with the digest of the file."""
    thin = {"anchor": "thin", "positive": {"image": b64(picture(1, size=(900, 3)))}}
    folder = draft(base, [*ROWS[:4], thin])
    name = next(
        p.positive.digest for p in read_examples(folder / TRAINING, "pairs") if p.anchor == "thin"
    )
    with pytest.raises(InvalidRequest, match=f"the picture with the sha256 {name}: .*processor"):
        run_job(folder, Interrupt())


def test_texts_and_pictures_are_encoded_in_their_places(base_model, tmp_path):
    """Each row is what the model makes of it alone."""
    items = []
    for n in range(3):
        (tmp_path / str(n)).write_bytes(picture(n))
        items += [f"text {n}", Picture(str(n), tmp_path / str(n))]
    seen = []
    found = encode(base_model, items, "query", seen.append)
    assert seen[-1] == len(items)
    np.testing.assert_allclose(found[::2], base_model.encode_texts(items[::2], "query"), atol=1e-5)
    alone = [base_model.read_image(item.path.read_bytes(), "query") for item in items[1::2]]
    np.testing.assert_allclose(found[1::2], base_model.encode(alone), atol=1e-5)
