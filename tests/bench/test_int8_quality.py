"""The int8 bench compares like with like: same texts, whole answers, and float32 as the measure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.int8_quality import DIMS, Collection, measure, read_collection, summarise

ROOT = Path(__file__).parents[2]
WIDTH = DIMS[-1]


@pytest.fixture
def labelled():
    """Fifty documents, each the answer to a query near it, as vectors of distinct texts."""
    random = np.random.default_rng(3)
    documents_ND = random.normal(size=(50, WIDTH)).astype(np.float32)
    queries_QD = documents_ND + random.normal(size=(50, WIDTH)).astype(np.float32)
    names = [f"q{n}" for n in range(50)], [f"d{n}" for n in range(50)]
    collection = Collection("made", *names, relevant=[{n: 1.0} for n in range(50)])
    rows = {text: row for row, text in enumerate((*names[0], *names[1]))}
    return collection, rows, np.concatenate([queries_QD, documents_ND])


def test_the_same_vectors_keep_everything(labelled):
    """Float32's own vectors under another name have ratio, overlap and cosine 1 at every size."""
    collection, rows, exact_UD = labelled
    _, same = measure(collection, rows, {"float32": exact_UD, "int8": exact_UD * 2})
    for name, figure in {"retained": 1, "overlap10": 1, "min_cosine": 1, "under": 0}.items():
        assert same.figures[name] == pytest.approx([figure] * len(DIMS), abs=1e-6), name


def test_bent_vectors_show_in_every_figure(labelled):
    """Noise as large as the vectors loses quality, neighbours and cosine, and the summary says so.

    An arithmetic that answered other texts' vectors would look the same.
    """
    collection, rows, exact_UD = labelled
    noise_UD = np.random.default_rng(4).normal(size=exact_UD.shape).astype(np.float32)
    results = measure(collection, rows, {"float32": exact_UD, "int8": exact_UD + noise_UD})
    bent = results[1].figures
    assert max(bent["retained"][:2]) < 1
    assert max(bent["overlap10"]) < 1
    assert max(bent["min_cosine"]) < max(bent["mean_cosine"]) < 0.9
    assert bent["under"] == [1.0] * len(DIMS)
    assert summarise(results) == {
        "int8": {
            "min_retained": round(min(bent["retained"]), 4),
            "mean_retained": round(sum(bent["retained"]) / len(DIMS), 4),
            "min_overlap10": round(min(bent["overlap10"]), 4),
            "min_cosine": round(min(bent["min_cosine"]), 5),
            "max_under": 1.0,
        }
    }


def test_scored_pairs_are_measured_by_the_order_of_their_cosines():
    """Pairs whose cosines rise with people's scores have Spearman 1, falling ones -1."""
    angles_Q = np.linspace(0, 1, 20)
    queries_QD = np.zeros((20, WIDTH), np.float32)
    queries_QD[:, 0] = 1
    documents_ND = np.zeros((20, WIDTH), np.float32)
    documents_ND[:, 0], documents_ND[:, 1] = np.cos(angles_Q), np.sin(angles_Q)
    texts = [str(number) for number in range(20)]
    rising = Collection("made", texts, texts, similarity=[-float(a) for a in angles_Q])
    falling = Collection("made", texts, texts, similarity=[float(a) for a in angles_Q])
    assert rising.score(queries_QD, documents_ND) == pytest.approx([1.0] * len(DIMS))
    assert falling.score(queries_QD, documents_ND) == pytest.approx([-1.0] * len(DIMS))


def test_a_sample_keeps_every_answer(tmp_path):
    """However few documents are asked for, those that answer a sampled query are there."""
    texts = [{"id": f"d{n}", "title": f"t{n}", "text": f"text {n}"} for n in range(30)]
    asked = [{"id": f"q{n}", "text": f"query {n}"} for n in range(10)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    lines = [f"q{n}\td{2 * n}\t1\nq{n}\td{2 * n + 1}\t2" for n in range(10)]
    (tmp_path / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    for num_documents, held in ((3, 8), (12, 12), (100, 30)):
        sample = read_collection(tmp_path, 4, num_documents)
        assert len(sample.queries) == 4
        assert len(set(sample.documents)) == held
        for query, relevant in zip(sample.queries, sample.relevant, strict=True):
            number = int(query.split()[1])
            found = {sample.documents[row]: grade for row, grade in relevant.items()}
            first, second = 2 * number, 2 * number + 1
            assert found == {f"t{first}. text {first}": 1.0, f"t{second}. text {second}": 2.0}


def test_without_collections_nothing_is_claimed(tmp_path):
    """Where the folder is absent the bench says so, measures nothing and ends in order."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench.int8_quality", str(tmp_path / "absent")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert "skipped absent: there is no such folder" in ended.stdout
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["results"] == []
    assert report["rounded"] == {}
