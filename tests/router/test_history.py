"""A slice's recall over time: a point a minute, and no more than there is room for."""

from services.router.recall.history import EVERY_S, History, RecallAt


def point(at: float, mean: float = 0.9) -> RecallAt:
    return RecallAt(at, 5, mean, 0.8, 1.0)


def test_of_one_minute_the_last_counts():
    """What was known at its end is what the point says; the next minute has its own."""
    history = History(10)
    for at, mean in ((0, 0.1), (EVERY_S - 1, 0.2), (EVERY_S, 0.3), (5 * EVERY_S, 0.4)):
        history.note(point(at, mean))
    assert [(kept.at, kept.mean) for kept in history.points()] == [
        (EVERY_S - 1, 0.2), (EVERY_S, 0.3), (5 * EVERY_S, 0.4)
    ]  # fmt: skip


def test_the_oldest_points_go():
    """However long it is watched, there are no more than so many; none if that is wanted."""
    history, nothing = History(3), History(0)
    for minute in range(20):
        history.note(point(minute * EVERY_S))
        nothing.note(point(minute * EVERY_S))
    assert [kept.at // EVERY_S for kept in history.points()] == [17, 18, 19]
    assert nothing.points() == []
