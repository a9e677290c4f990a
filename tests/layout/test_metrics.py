"""Metrics keep one style: matryoshka_<service>_<noun>_<unit>, with help."""

import re

import pytest
from prometheus_client import CollectorRegistry

from services.encoder.metrics import EncoderMetrics
from services.router.metrics import RouterMetrics
from services.shared.metrics import show_server
from services.trainer.metrics import TrainerMetrics

UNITS = r"(seconds|bytes|total|tokens|ratio|nats|count|candidates|dimensions)"


@pytest.mark.parametrize("kind", [EncoderMetrics, RouterMetrics, TrainerMetrics])
def test_names_end_in_a_unit_and_have_help(kind):
    """A dashboard can guess what a number means."""
    registry = CollectorRegistry()
    kind(registry)
    service = kind.__name__.removesuffix("Metrics").lower()
    families = list(registry.collect())
    assert families
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(rf"matryoshka_{service}_[a-z_]+_{UNITS}", name), name
        assert family.documentation.endswith("."), name


def test_a_server_tells_its_version_and_its_disk(tmp_path):
    """In the same style, also when the data folder is still to be made."""
    registry = CollectorRegistry()
    show_server(registry, "1.2.3", tmp_path / "not" / "yet")
    for family in registry.collect():
        assert re.fullmatch(rf"matryoshka_server_[a-z_]+_{UNITS}", family.name), family.name
        assert family.documentation.endswith(".")
    assert registry.get_sample_value("matryoshka_server_versions_count", {"version": "1.2.3"}) == 1
    free, whole = (
        registry.get_sample_value("matryoshka_server_disk_bytes", {"part": part})
        for part in ("free", "whole")
    )
    assert 0 < free < whole
