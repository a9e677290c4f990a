"""What both halves of migrations have in common, as it is kept: exact, of all routers, bounded."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.router.changes.agreements import OTHER, Agreements
from services.shared.database import Database


@pytest.fixture
def two(tmp_path: Path):
    """Two routers' views of one database."""
    databases = [Database(f"sqlite:///{tmp_path}/router.db") for _ in range(2)]
    for database in databases:
        database.open()
    yield [Agreements(database, 3) for database in databases]
    for database in databases:
        database.close()


def test_all_routers_add_to_the_same_numbers(two: list[Agreements]) -> None:
    """At once, too: every search counts once, and the mean is that of all of them."""
    overlaps = [number / 40 for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: two[n % 2].observe("m", "a", overlaps[n]), range(40)))
    for agreements in two:
        (agreement,) = agreements.of("m").values()
        assert agreement.num_compared == 40
        assert agreement.overlap == pytest.approx(sum(overlaps) / 40)


def test_slices_come_the_least_first_and_beyond_a_bound_as_one(two: list[Agreements]) -> None:
    """Those that are known stay their own; another migration has room for as many."""
    slices = {"a": 0.5, "": 0.1, "b": 0.9, "late": 0.2, "later": 0.4}
    counted = [two[0].observe("m", slice_, overlap)[0] for slice_, overlap in slices.items()]
    assert counted == ["a", "", "b", OTHER, OTHER]
    assert two[1].observe("m", "b", 0.9)[0] == "b"
    assert list(two[1].of("m")) == ["", OTHER, "a", "b"]
    assert two[1].observe("another", "late", 1.0)[0] == "late"
    two[0].forget("m")
    assert two[1].of("m") == {}
    assert two[1].of("another").keys() == {"late"}
