"""What is filled in where the caller left it open."""

import pytest

from services.shared.errors import InvalidRequest
from services.shared.pb import trainer_pb2 as pb
from services.trainer.jobs.events import Event
from services.trainer.jobs.hyperparameters import (
    EarlyStopping,
    Hyperparameters,
    Lora,
    Wanted,
    default_dims,
    few_steps,
    fill,
)
from services.trainer.jobs.result_files import step_metrics
from services.trainer.jobs.rows import Job
from services.trainer.jobs.spec import Mining, Spec, spec_path
from services.trainer.openai_answer import write_fine_tuning
from services.trainer.openai_body import read_create
from services.trainer.wire import read_request, write_hyperparameters, write_job


@pytest.mark.parametrize(
    ("full", "dims"),
    [
        (384, (16, 32, 64, 128, 256)),
        (1024, (16, 32, 64, 128, 256, 512)),
        (17, (16,)),
        (16, (8,)),
        (2, (1,)),
    ],
)
def test_default_sizes_are_powers_of_two_below_the_full_one(full, dims):
    """They are the sizes people ask for, whatever the width."""
    assert default_dims(full) == dims


def test_defaults_fit_the_method_and_the_data():
    """A batch is never larger than the data; the full size is trained where it can change."""
    adaptor = fill(Wanted(), 384, 700)
    assert (adaptor.head, adaptor.batch_size, adaptor.steps) == ("rotation", 700, 160)
    assert adaptor.trained_dims[-1] == 256
    assert adaptor.dims[-1] == 384
    dense = fill(Wanted(head="dense"), 384, 10_000)
    assert dense.trained_dims[-1] == 384
    full = fill(Wanted(method="full", matryoshka_dims=(64, 384)), 384, 100)
    assert full.head is None
    assert full.steps == 4  # one epoch
    assert full.dims == full.trained_dims == (64, 384)


def test_a_method_brings_what_it_needs_and_no_other():
    """LoRA its rank, distillation its student, a table its rate."""
    lora = fill(Wanted(method="lora"), 384, 1000)
    assert lora.lora == Lora(rank=16, alpha=32)
    assert lora.student is None
    static = fill(Wanted(method="static"), 384, 100_000)
    assert (static.batch_size, static.learning_rate) == (2048, 0.2)
    assert static.lora is None
    assert fill(Wanted(method="distill"), 384, 1000).student == "base"
    assert fill(Wanted(head="residual"), 384, 1000).trained_dims[-1] == 384


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ({"n_epochs": 3}, ("3 of 450 examples", "'adaptor'", "160", "leave n_epochs out")),
        ({"steps": 39}, ("39 of 450", "leave steps out")),
        ({"method": "static", "n_epochs": 1}, ("1 of 450", "'static'", "200")),
        ({"method": "distill", "student": "static", "steps": 2}, ("'distill'", "200")),
        ({"steps": 40}, ()),
        ({"n_epochs": 3, "batch_size": 32}, ()),
        ({"method": "full", "n_epochs": 1}, ()),  # once over the data is its own
        ({"method": "nest", "steps": 5}, ()),
        ({}, ()),
    ],
)
def test_few_steps_are_told_where_they_were_asked_for(wanted, parts):
    """A batch as large as the data makes an epoch one step: a head needs many times that."""
    asked = Wanted(**wanted)
    said = few_steps(asked, fill(asked, 384, 450))
    assert bool(said) == bool(parts)
    for part in parts:
        assert part in said


def test_weights_follow_the_sizes_in_the_loss():
    """A rotation has no full size in its loss, and so no weight for it."""
    wanted = {"matryoshka_dims": (16, 64, 384), "dim_weights": (3.0, 1.0, 0.5)}
    assert fill(Wanted(**wanted), 384, 1000).trained_weights == (3.0, 1.0)
    dense = fill(Wanted(head="dense", **wanted), 384, 1000)
    assert dict(zip(dense.trained_dims, dense.trained_weights, strict=True)) == {
        16: 3.0, 64: 1.0, 384: 0.5
    }  # fmt: skip
    unnamed = fill(Wanted(method="full", matryoshka_dims=(16,), dim_weights=(2.0,)), 384, 1000)
    assert unnamed.trained_weights == (2.0, 1.0)


def test_early_stopping_takes_the_smallest_size_and_ten_looks():
    """Where the caller says nothing more than that it is wanted."""
    hyper = fill(Wanted(early_stopping=EarlyStopping(), steps=500), 384, 1000)
    assert hyper.early_stopping == EarlyStopping(dim=16, every_steps=50, patience=3)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ({"lora": Lora(rank=8)}, "METHOD_LORA"),
        ({"method": "lora", "lora": Lora(rank=257)}, "256"),
        ({"method": "lora", "lora": Lora(alpha=float("inf"))}, "lora.alpha"),
        ({"teacher": "x"}, "METHOD_DISTILL"),
        ({"dim_weights": (1.0,)}, "as many as"),
        ({"matryoshka_dims": (16, 32), "dim_weights": (1.0, 0.0)}, "above 0"),
        ({"evaluated_dims": (12,)}, "multiples of 8 below 384"),
        ({"evaluated_dims": (384,)}, "multiples of 8 below 384"),
        ({"early_stopping": EarlyStopping(dim=385)}, "384"),
        ({"early_stopping": EarlyStopping(every_steps=1000)}, "160"),
        ({"method": "nest", "evaluated_dims": (24,)}, "METHOD_NEST"),
        ({"loss_kernel": True}, "METHOD_FULL, METHOD_LORA"),
        ({"method": "full", "batch_size": 16_385}, "between 2 and 16384"),
        ({"method": "full", "batch_size": 65_537, "loss_kernel": True}, "between 2 and 65536"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(wanted, part):
    with pytest.raises(InvalidRequest, match=part):
        fill(Wanted(**wanted), 384, 5000)


def test_what_goes_in_by_the_wire_comes_back():
    """Every field, filled in: a caller that sends the answer gets the same job again."""
    hyper = pb.Hyperparameters(
        method=pb.METHOD_LORA, lora=pb.Lora(rank=4, alpha=2, targets=["query"]), steps=7,
        matryoshka_dims=[16, 64], dim_weights=[2, 1], evaluated_dims=[24], batch_size=5,
        learning_rate=0.5, seed=3,
        early_stopping=pb.EarlyStopping(dim=64, every_steps=3, patience=2),
    )  # fmt: skip
    distilled = pb.Hyperparameters(
        method=pb.METHOD_DISTILL, steps=2, matryoshka_dims=[16], batch_size=5, learning_rate=0.5,
        distillation=pb.Distillation(teacher="a/b", student=pb.STUDENT_STATIC),
    )  # fmt: skip
    for given in (hyper, distilled):
        wanted = read_request(pb.CreateJobRequest(hyperparameters=given)).hyperparameters
        assert write_hyperparameters(fill(wanted, 384, 1000)) == given


@pytest.mark.parametrize(
    "wanted",
    [
        {"head": "residual", "matryoshka_dims": (16, 384), "dim_weights": (3.0, 1.0)},
        {"method": "full", "early_stopping": EarlyStopping(), "evaluated_dims": (24,)},
        {"method": "full", "loss_kernel": True},
        {"method": "lora", "lora": Lora(targets=("query",)), "seed": 5},
        {"method": "static", "n_epochs": 2},
        {"method": "distill", "student": "base", "teacher": "org/teacher", "onnx": True},
        {"method": "nest"},
    ],
)
def test_what_a_job_shows_can_be_sent_again(tmp_path, wanted):
    """In OpenAI's shape: the settings of one job make another like it."""
    hyper = fill(Wanted(**wanted), 384, 1000)
    job = Job(id="job-1", base_model="m", model_id="x", hyperparameters=hyper.model_dump_json())
    shown = write_fine_tuning(job, tmp_path)
    names = ("model", "training_file", "method", "columns", "mine_negatives", "hyperparameters")
    again = read_create({name: shown[name] for name in names} | {"seed": shown["seed"]})
    assert fill(again.hyperparameters, 384, 1000) == hyper


def test_how_data_is_read_is_shown_on_both_wires(tmp_path):
    """The mapping of columns and how negatives are mined, in the form in which they are sent."""
    columns, mining = {"frage": "anchor", "antwort": "positive"}, Mining(negatives=2, margin=0.5)
    hyper = fill(Wanted(), 384, 1000)
    Spec(
        base_dir="m", base_model="m", model_id="x", data_name="d", columns=columns, mining=mining,
        hyperparameters=hyper, threads=1, checkpoint_steps=5,
    ).write(spec_path(tmp_path))  # fmt: skip
    job = Job(id="job-1", base_model="m", model_id="x", hyperparameters=hyper.model_dump_json())
    shown, told = write_fine_tuning(job, tmp_path), write_job(job, tmp_path, with_plot=False)
    names = ("model", "training_file", "columns", "mine_negatives")
    by_http = read_create({name: shown[name] for name in names})
    by_grpc = read_request(
        pb.CreateJobRequest(columns=told.columns, mine_negatives=told.mine_negatives)
    )
    for again in (by_http, by_grpc):
        assert (again.columns, again.mining) == (columns, mining)


def test_jobs_of_older_releases_can_still_be_read():
    """Their settings lack the newer fields."""
    old = Hyperparameters.model_validate_json(
        '{"method": "adaptor", "head": "dense", "matryoshka_dims": [16], "full": 384, "steps": 1,'
        '"batch_size": 2, "learning_rate": 0.1, "seed": 0}'
    )
    assert old.trained_weights == (1.0, 1.0)
    assert old.measured_dims == (16, 384)


def test_the_loss_in_all_is_what_is_minimised():
    """In the table of the steps too: each size by its weight, sizes themselves without."""
    wanted = {"method": "full", "matryoshka_dims": (16, 64), "dim_weights": (3.0, 0.5)}
    hyper = fill(Wanted(**wanted), 384, 1000)
    losses = {16: 1.0, 64: 2.0, 384: 4.0}
    assert hyper.total(losses) == 3.0 + 1.0 + 4.0
    table = step_metrics([Event(phase="train", step=5, loss=losses)], hyper).decode()
    assert table.splitlines()[1] == "5,8.0,1.0,2.0,4.0"
