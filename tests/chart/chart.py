"""The chart, rendered by the real Helm engine: what its tests look at."""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "k8s" / "matryoshka"
RELEASED = ROOT / "tests" / "contract" / "released" / "chart.tgz"
RELEASE, NAMESPACE = "rel", "ns"
# What users are told to install with, each a list of files laid over each other.
OVERLAYS = {
    "one-machine": ["one-machine"],
    "plain": ["plain"],
    "production": ["production"],
    "production-gpu": ["production", "gpu"],
    "production-plain": ["production", "plain"],
}
CASES = [*sorted(path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*.yaml")),
         *OVERLAYS]  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """What one set of values makes."""

    objects: tuple[dict, ...]
    notes: str

    def of(self, kind: str, end: str = "") -> list[dict]:
        """Return the objects of a kind whose names end so."""
        return [
            found
            for found in self.objects
            if found["kind"] == kind and found["metadata"]["name"].endswith(end)
        ]

    def one(self, kind: str, end: str = "") -> dict:
        (found,) = self.of(kind, end)
        return found

    def pods(self) -> list[tuple[str, dict, dict]]:
        """Return (name, template, what holds it) of every pod there is."""
        found = []
        for owner in self.objects:
            kind, name = owner["kind"], owner["metadata"]["name"]
            if kind == "Pod":
                found.append((name, owner, owner))
            elif kind in ("Deployment", "StatefulSet"):
                found.append((name, owner["spec"]["template"], owner))
        return found

    def env(self) -> list[tuple[str, dict]]:
        """Return (container, variable) of all of them."""
        return [
            (container["name"], variable)
            for _, pod, _ in self.pods()
            for container in pod["spec"]["containers"]
            for variable in container.get("env", ())
        ]


def values(case: str) -> dict:
    """Return the values of a case."""
    if case not in OVERLAYS:
        return read(CHART / "ci" / f"{case}-values.yaml")
    merged: dict = {}
    for name in OVERLAYS[case]:
        _lay_over(merged, read(CHART / f"values-{name}.yaml"))
    return merged


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text()) or {}


def _lay_over(base: dict, over: dict) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _lay_over(base[key], value)
        else:
            base[key] = value


@cache
def rendered(case: str) -> Rendered:
    return render(values(case))


def render(given: dict) -> Rendered:
    """Render with values; helm.HelmError: they are refused."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(given, name=RELEASE, namespace=NAMESPACE)
    texts = {path: text for path, text in files.items() if path.endswith(".yaml")}
    objects = [
        found
        for text in texts.values()
        for found in yaml.load_all(text, yaml.CSafeLoader)
        if found is not None
    ]
    notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
    return Rendered(tuple(objects), notes)


if __name__ == "__main__":
    # After a release: what later charts must be able to take over from.
    with TemporaryDirectory() as folder:
        shutil.move(helm.package(CHART, destination=folder), RELEASED)
