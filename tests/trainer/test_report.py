"""Table and picture."""

import struct

from services.shared.card import DimScores, Quality, SimilarityScores
from services.trainer.jobs.spec import NestScores
from services.trainer.results.report import markdown_table, plot, plot_nest


def quality(*rows):
    before, after = (
        tuple(DimScores(dim=row[0], ndcg10=row[side], recall10=0.25, mrr10=1) for row in rows)
        for side in (1, 2)
    )
    return Quality(data="x", num_queries=10, num_documents=100, before=before, after=after)


def test_the_table_has_a_row_a_size():
    """Before and after stand side by side."""
    lines = markdown_table(quality((16, 0.25, 0.5), (384, 0.75, 0.75))).splitlines()
    assert lines[2] == "| 16 | 0.250 → 0.500 | 0.250 → 0.250 | 1.000 → 1.000 |"
    assert len(lines) == 4


def test_scored_pairs_have_a_table_and_a_picture_of_their_own():
    """Two correlations; below zero too."""
    scores = tuple(SimilarityScores(dim=dim, spearman=-0.25, pearson=0.5) for dim in (16, 32))
    found = Quality(data="x", num_queries=10, num_documents=9, before=scores, after=scores)
    lines = markdown_table(found).splitlines()
    assert lines[0] == "| size | Spearman | Pearson |"
    assert lines[2] == "| 16 | -0.250 → -0.250 | 0.500 → 0.500 |"
    assert plot(found, "ft:a:b:c").startswith(b"\x89PNG")


def test_the_picture_is_drawn_for_any_scores():
    """One size, losses, zeros: a PNG of the usual size each time."""
    for rows in ([(16, 0.2, 0.4), (384, 0.7, 0.7)], [(384, 0.0, 0.0)], [(1, 0.9, 0.1), (3, 1, 1)]):
        png = plot(quality(*rows), "ft:a:b:c")
        assert png.startswith(b"\x89PNG")
        assert struct.unpack(">II", png[16:24]) == (1200, 750)


def test_the_picture_of_a_nest_job_is_drawn():
    """Three lines over the sizes: a PNG of the usual size."""
    rows = [NestScores(dim=dim, plain=0.5, pca=0.7, nested=0.9) for dim in (16, 64, 384)]
    png = plot_nest(rows, "nest:a:b", 100, 1000)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (1200, 750)
