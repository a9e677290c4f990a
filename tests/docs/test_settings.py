"""What docs/settings.md says of settings and of rounding is what the code and the bench say."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.cli.main import UpSettings
from services.encoder.metrics import EncoderMetrics
from services.encoder.settings import EncoderSettings
from services.router.settings import RouterSettings
from services.shared.settings import ServerSettings
from services.trainer.settings import TrainerSettings

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
MONITORING = (ROOT / "docs" / "monitoring.md").read_text()
RESULT = ROOT / "bench" / "results" / "int8-quality.txt"

SERVICES = {
    "ENCODER": EncoderSettings,
    "ROUTER": RouterSettings,
    "TRAINER": TrainerSettings,
    "UP": UpSettings,
}
# Each service has its own; they stand in its own table.
PORTS = {"http_port", "grpc_port"}
ROW = re.compile(r"^\| `(MATRYOSHKA_[\w<>]+)` \| (.+?) \|(.*?)\| (.+?) \|$", re.MULTILINE)
# The ends of names that say a unit.
UNITS = {"_s": "s", "_bytes": "bytes", "_kb": "KiB", "_tokens": "tokens", "_chars": "characters"}


def variable(service, field):
    is_shared = field in ServerSettings.model_fields and field not in PORTS
    return f"MATRYOSHKA_{'<SERVICE>' if is_shared else service}_{field.upper()}"


FIELDS = [
    pytest.param(settings, field, variable(service, field), id=f"{service}_{field}")
    for service, settings in SERVICES.items()
    for field in settings.model_fields
]


@pytest.fixture(scope="module")
def rows():
    """The tables' rows: {variable: (default, unit, text)}."""
    found = ROW.findall(SETTINGS)
    assert len({name for name, *_ in found}) == len(found), "a variable stands in two rows"
    return {name: (default, unit.strip(), text) for name, default, unit, text in found}


def test_the_tables_hold_every_setting_and_no_other(rows):
    """A field that is added, renamed or removed in the code must be so in the documents."""
    assert set(rows) == {parameter.values[2] for parameter in FIELDS}


@pytest.mark.parametrize(("settings", "field", "name"), FIELDS)
def test_a_default_in_the_tables_is_the_codes(settings, field, name, rows):
    """What stands there, set in the environment, is what holds when nothing is set."""
    shown, unit, _ = rows[name]
    info = settings.model_fields[field]
    if info.default_factory is not None:  # it depends on the machine, so it is said in words
        assert not re.search(r"\d", shown)
        assert shown in info.description
        return
    if info.default is None:
        assert shown == "unset"
        return
    value, _, in_brackets = shown.partition(" (")
    assert getattr(settings.read(**{field: value}), field) == info.default
    if field.endswith("_bytes"):
        assert in_brackets == f"{info.default / 2**20:g} MiB)"
    wanted = next((unit for end, unit in UNITS.items() if field.endswith(end)), unit)
    assert unit == wanted


def test_the_figures_of_rounding_are_the_committed_ones():
    """Both tables of what rounding costs stand in the bench's committed output."""
    report = json.loads(RESULT.read_text().splitlines()[-1])
    wanted = []
    for arithmetic, figures in report["rounded"].items():
        parts = ("mean_retained", "min_retained", "min_overlap10", "min_cosine", "max_under")
        shown = [f"{figures[part]:.{5 if part == 'min_cosine' else 4}f}" for part in parts]
        wanted.append(f"| {arithmetic} | {' | '.join(shown)} |")
        for result in report["results"]:
            ratios = result["arithmetics"][arithmetic]["retained"].values()
            name = f"{arithmetic}: {result['collection']}, {result['measure']}"
            wanted.append(f"| {name} | {' | '.join(f'{ratio:.4f}' for ratio in ratios)} |")
    assert sorted(wanted) == sorted(re.findall(r"^\| (?:bfloat16|int8)\b.*$", SETTINGS, re.M))


def test_the_encoders_metrics_are_all_explained():
    """Whoever reads /metrics finds what a name means, and no name that is not there."""
    registry = CollectorRegistry()
    EncoderMetrics(registry)
    shared = {"requests", "over_limit", "request_seconds", "stage_seconds"}
    own = {family.name.removeprefix("matryoshka_encoder_") for family in registry.collect()}
    said = re.findall(r"`matryoshka_encoder_(\w+)`", MONITORING)
    assert {name.removesuffix("_total") for name in said} - shared == own - shared
