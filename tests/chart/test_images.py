"""Dockerfiles and the compose file, as far as they can be held without a builder.

Nobody here can build an image. So each instruction is one of a few known shapes, each RUN line is
parsed by a shell, what it installs is pinned and enough, and the compose file's services read the
settings that they are given.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
import yaml
from packaging.requirements import Requirement

from services.shared.server import ServerSettings
from services.trainer.jobs import manifest
from tests.chart.chart import CHART, ROOT, rendered
from tests.chart.test_settings import SETTINGS

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    re.split("==", line)[0].lower().replace("_", "-")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line
}
# Installed with torch's CUDA build only, by names and versions that torch itself pins.
OF_CUDA = re.compile(r"nvidia-|cuda-|triton")


def instructions(path):
    """Return [(keyword, rest)] of each stage's lines, comments left out, continued lines joined."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line.strip()]


def extras_of(path):
    """Return the extras that an image installs."""
    (wanted,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", path.read_text())
    return wanted.split(",")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_two_stages_from_one_pinned_base_and_no_root(path):
    """The compiler's stage stays behind; base and digest are arguments; the user is the chart's."""
    found = instructions(path)
    assert [rest for keyword, rest in found if keyword == "FROM"] == [
        "${BASE}${DIGEST} AS build", "${BASE}${DIGEST}",
    ]  # fmt: skip
    arguments = [rest for keyword, rest in found if keyword == "ARG"]
    assert arguments[1] == "DIGEST="
    assert re.fullmatch(r"BASE=[\w./-]+:[\w.-]+", arguments[0]), "a tag, and not latest"
    last = found[max(n for n, (keyword, _) in enumerate(found) if keyword == "FROM") :]
    keywords = [keyword for keyword, _ in last]
    assert "RUN" not in keywords, "what is run makes layers, and needs tools"
    user = dict(last)["USER"]
    pods = [pod["spec"]["securityContext"] for name, pod, _ in rendered("default").pods()
            if "qdrant" not in name]  # fmt: skip
    assert {f"{pod['runAsUser']}:{pod['runAsGroup']}" for pod in pods} == {user}
    assert user == f"{manifest._USER}:{manifest._USER}"
    assert dict(last)["ENTRYPOINT"] == '["matryoshka"]'
    assert not [rest for keyword, rest in found if keyword in ("ADD", "VOLUME")]
    copied = [rest for keyword, rest in found if keyword == "COPY" and "--from" not in rest]
    for sources in copied:
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_run_lines_are_shell_that_installs_what_is_pinned(path):
    """A virtual environment, and this project into it, with constraints and no cache left."""
    runs = [rest for keyword, rest in instructions(path) if keyword == "RUN"]
    for run in runs:
        subprocess.run(["sh", "-n", "-c", run], check=True, timeout=10)
    venv, install = runs
    assert shlex.split(venv) == ["python", "-m", "venv", "/opt/matryoshka"]
    words = shlex.split(install)
    assert words[:4] == ["/opt/matryoshka/bin/python", "-m", "pip", "install"]
    assert {"--no-cache-dir", "--no-compile"} <= set(words)
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert set(extras_of(path)) <= set(PROJECT["optional-dependencies"])


def closure(extras):
    """Return the names of all that an image installs, by what is installed here."""
    wanted = [*PROJECT["dependencies"]]
    seen_extras, found = set(), set()
    waiting = list(extras)
    while waiting:
        if (extra := waiting.pop()) not in seen_extras:
            seen_extras.add(extra)
            for text in PROJECT["optional-dependencies"][extra]:
                one = Requirement(text)
                waiting += one.extras if one.name == PROJECT["name"] else ()
                wanted += [text] if one.name != PROJECT["name"] else ()
    while wanted:
        one = Requirement(wanted.pop())
        name = one.name.lower().replace("_", "-").replace(".", "-")
        if (name, *sorted(one.extras)) in found:
            continue
        found.add((name, *sorted(one.extras)))
        try:
            below = requires(one.name) or ()
        except PackageNotFoundError:
            continue  # not here: an extra of its own, pinned all the same
        for text in below:
            marker = Requirement(text).marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in ("", *one.extras)
            ):
                wanted.append(text.split(";")[0])
    return {name for name, *_ in found}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_everything_that_an_image_holds_is_pinned(path):
    """Two builds of one commit hold the same versions."""
    names = closure(extras_of(path))
    assert {"grpcio", "starlette", "s3fs"} <= names
    assert {name for name in names - PINNED if not OF_CUDA.match(name)} == set()


def test_the_routers_image_has_no_torch():
    """It starts in a second and is a tenth as large."""
    names = closure(extras_of(DOCKER / "router.Dockerfile"))
    assert not names & {"torch", "transformers", "sentence-transformers", "numba"}
    assert "torch" in closure(extras_of(DOCKER / "cpu.Dockerfile"))


# Hides every package that an image does not hold, and imports what the image serves.
HIDE_AND_IMPORT = """
import importlib.machinery, importlib.metadata, sys
names = {"matryoshka-suite", *sys.argv[1].split(",")}

def plain(name):
    return name.lower().replace("_", "-").replace(".", "-")

hidden = {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if not {plain(owner) for owner in owners} & names
}
finders = list(sys.meta_path)
find_all = importlib.machinery.PathFinder.find_distributions

class Hide:
    @staticmethod
    def find_distributions(*context):
        return (found for found in find_all(*context) if plain(found.name) in names)

    def find_spec(self, module, path=None, target=None):
        if module.split(".")[0] in hidden - {"services"}:
            return None
        specs = (finder.find_spec(module, path, target) for finder in finders)
        return next((spec for spec in specs if spec), None)

sys.meta_path[:] = [Hide()]
import services.cli.main
for module in sys.argv[2:]:
    __import__(module)
"""


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("router", ["services.router.service", "services.router.storage.edge_worker"]),
        ("cpu", ["services.encoder.service", "services.trainer.service"]),
    ],
)
def test_an_image_holds_what_its_services_import(name, modules):
    """With every other package of this machine hidden, they are imported all the same."""
    names = closure(extras_of(DOCKER / f"{name}.Dockerfile"))
    command = [sys.executable, "-c", HIDE_AND_IMPORT, ",".join(sorted(names)), *modules]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_the_chart_and_the_dockerfiles_name_the_same_images():
    """Each image of the values has its Dockerfile."""
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    named = {key: value["repository"] for key, value in images.items() if isinstance(value, dict)}
    assert named == {path.name.split(".")[0]: f"matryoshka-{path.name.split('.')[0]}"
                     for path in DOCKERFILES}  # fmt: skip


def test_the_compose_files_services_read_their_settings(monkeypatch):
    """By the settings classes themselves; ports and folders are those that are opened."""
    for service, kind in SETTINGS.items():
        found = COMPOSE["services"][service]
        with monkeypatch.context() as patch:
            patch.delenv("MATRYOSHKA_ENCODER_ENGINES_DIR", raising=False)
            for name, value in found["environment"].items():
                if name.startswith("MATRYOSHKA_"):
                    assert name.removeprefix(f"MATRYOSHKA_{service.upper()}_").lower() in (
                        kind.model_fields
                    )
                    patch.setenv(name, value)
            settings: ServerSettings = kind.read()
        assert found["command"] == ["serve", service]
        assert found["ports"] == [
            f"127.0.0.1:{port}:{port}" for port in (settings.http_port, settings.grpc_port)
        ]
        assert str(settings.data_dir) in [volume.split(":")[1] for volume in found["volumes"]]
        assert f":{settings.http_port}/readyz" in found["healthcheck"]["test"][-1]
        stopping = settings.drain_s + settings.grace_s + getattr(settings, "stop_s", 0)
        assert stopping < int(found["stop_grace_period"].removesuffix("s"))
        assert (ROOT / found["build"]["dockerfile"]).exists()
        assert found["read_only"] is True
        assert found["cap_drop"] == ["ALL"]
    addresses = {
        value
        for service in SETTINGS
        for name, value in COMPOSE["services"][service]["environment"].items()
        if name.endswith("_ADDRESS")
    }
    assert addresses == {"encoder:9000", "router:9001", "trainer:9002"}


def test_the_compose_files_companions_find_what_they_need():
    """Files that are mounted exist; images have tags; Prometheus scrapes all and labels them."""
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        if "image" in service:
            assert re.search(r":v?\d", service["image"]), service["image"]
    jobs = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    targets = [one for job in jobs for one in job["static_configs"]]
    assert {target for one in targets for target in one["targets"]} == {
        "encoder:8000", "router:8001", "trainer:8002", "qdrant:6333",
    }  # fmt: skip
    assert all({"namespace", "release"} <= set(one["labels"]) for one in targets)


def test_the_documents_commands_name_what_there_is():
    """Files, overlays and values in docs/deploy.md's commands, which need a cluster to be run."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```$",
        (ROOT / "docs" / "deploy.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    commands = [
        shlex.split(line) for kind, block in blocks if not kind for line in block.splitlines()
    ]
    paths = [word for words in commands for word in words if word.startswith("deploy/")]
    assert len(paths) > 6
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {words[0] for words in commands} <= {"docker", "helm", "kubectl"}
