"""Metrics keep one style: matryoshka_<service>_<noun>_<unit>, with help."""

import re

import pytest
from prometheus_client import CollectorRegistry

from services.encoder.metrics import EncoderMetrics
from services.router.metrics import RouterMetrics
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
