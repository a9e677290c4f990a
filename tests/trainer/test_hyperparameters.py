"""What is filled in where the caller left it open."""

import pytest

from services.trainer.jobs.hyperparameters import Wanted, default_dims, fill


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
