"""The GPU bench runs where there is no GPU: the same code path, tiny, with nothing claimed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_encoder.py"


@pytest.fixture(scope="module")
def smoke():
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--tokens", "64"],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_packed_and_traced_equals_float32(smoke):
    """Packed texts of mixed lengths give the vectors that each text gives alone in float32."""
    assert smoke.returncode == 0, smoke.stderr
    summary = json.loads(smoke.stdout.splitlines()[-1])
    assert summary["not_measured"] == {}
    ours = [row for row in summary["rows"] if row["way"].startswith("ours")]
    assert {(row["length"], row["way"]) for row in ours} == {
        (length, way) for length in ("8", "mixed") for way in ("ours, eager", "ours, traced")
    }
    # bfloat16 keeps 8 bits: a wrong boundary or position falls far below this.
    assert all(row["min_cosine"] > 0.999 for row in ours)


def test_a_cpu_claims_no_gpu_figure(smoke):
    """Without a GPU every rate says that it was not measured."""
    summary = json.loads(smoke.stdout.splitlines()[-1])
    assert summary["measured"] is False
    assert summary["tokens_per_s"] is summary["mfu"] is summary["vs_sentence_transformers"] is None
    assert "not measured" in smoke.stdout
    assert "tokens/s" not in smoke.stdout
