"""The commands as a user types them."""

import json
import socket
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.peer import VARIABLES
from services.router.storage.edge_folder import EdgeFolder
from tests.conftest import serve


def matryoshka(*arguments, timeout=200, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | environment,
        check=False,
    )


def test_the_demo_shows_the_whole_promise(tmp_path):
    """It ends with 0, no failed query, a picture, and every figure in its last line."""
    ended = matryoshka("demo", "--exit", "--documents", "400", "--output", str(tmp_path))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures["documents"] == 400
    assert figures["failed_queries"] == 0 < figures["queries_during_swap"]
    assert figures["dims"] == [64, 128, 384]
    assert figures["recall_at_10"]["exact 384"] == 1.0
    assert figures["bytes_per_vector"].keys() == {"64", "128", "384"}
    assert figures["ndcg10_before"].keys() == figures["ndcg10_after"].keys() >= {"64", "384"}
    assert figures["seconds"] > 0
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "demo.json").read_text()) == figures


def test_ending_the_demo_ends_its_services(tmp_path):
    """SIGTERM in the middle leaves no process behind."""
    command = [sys.executable, "-m", "services.cli.main", "demo", "--output", str(tmp_path)]
    demo = subprocess.Popen([*command, "--documents", "400"], stdout=subprocess.DEVNULL)
    logs = [tmp_path / f"{name}.log" for name in ("encoder", "router", "trainer")]
    deadline = time.monotonic() + 90
    while not (logs[2].exists() and "is ready" in logs[2].read_text()):  # the last
        assert time.monotonic() < deadline
        time.sleep(0.1)
    demo.terminate()
    assert demo.wait(timeout=60) == 143
    assert all("stopped" in log.read_text() for log in logs)


def test_wrong_settings_are_told_at_once_and_end_the_process():
    """Exit code 2, every wrong variable by name, no traceback."""
    ended = matryoshka("serve", "encoder", MATRYOSHKA_ENCODER_GRPC_PORT="x")
    assert ended.returncode == 2
    assert "MATRYOSHKA_ENCODER_GRPC_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_up_tells_what_is_wrong_with_all_services_at_once():
    """Its own settings, each service's and keys that protect nothing, in one list."""
    ended = matryoshka(
        "up", "--port", "0",
        MATRYOSHKA_UP_DRAIN_S="soon",
        MATRYOSHKA_ENCODER_MAX_TEXTS="many",
        MATRYOSHKA_ROUTER_MAX_LIMIT="0",
        MATRYOSHKA_TRAINER_STOP_S="-",
        MATRYOSHKA_TRAINER_API_KEY="sk-planted",
        MATRYOSHKA_ROUTER_TLS_CERT="tls.crt",
    )  # fmt: skip
    assert ended.returncode == 2
    listed = ended.stderr.partition("these settings are wrong:")[2]
    names = ("UP_DRAIN_S", "ENCODER_MAX_TEXTS", "ROUTER_MAX_LIMIT", "TRAINER_STOP_S")
    protecting = [
        f"{name} would protect nothing" for name in ("TRAINER_API_KEY", "ROUTER_TLS_CERT")
    ]
    for name in (*names, *protecting):
        assert f"  MATRYOSHKA_{name}" in listed
    assert "Traceback" not in ended.stderr
    assert "sk-planted" not in ended.stderr + ended.stdout


def test_a_start_logs_what_it_has_no_use_for(tmp_path):
    """One line each of level WARNING, of all services of the process, and no value."""
    started = serve(
        tmp_path, "up",
        MATRYOSHKA_ROUTER_SHADOW="sk-planted",
        MATRYOSHKA_GRPC_PORT="sk-planted",
        MATRYOSHKA_ROUTER_PORT="tcp://10.0.0.7:9001",
    )  # fmt: skip
    started.stop()
    log = started.log_path.read_text()
    told = [line.partition(": ")[2] for line in log.splitlines() if " WARNING matryoshka: " in line]
    assert told == [
        "MATRYOSHKA_ROUTER_SHADOW is not a setting; did you mean MATRYOSHKA_ROUTER_SHADOW_QUEUE or "
        "MATRYOSHKA_ROUTER_SHADOW_SHARE?",
        "MATRYOSHKA_GRPC_PORT is not a setting; did you mean MATRYOSHKA_UP_GRPC_PORT?",
    ]
    assert "sk-planted" not in log


def test_a_command_takes_no_misspelt_variable():
    """It would call another service than was meant; what is less like one is told and no more."""
    ended = CliRunner().invoke(app, ["collections"], env={"MATRYOSHKA_CLI_ADRESS": "there:9000"})
    assert ended.exit_code == 2
    assert ended.stderr == (
        "MATRYOSHKA_CLI_ADRESS is not a setting; did you mean MATRYOSHKA_CLI_ADDRESS?\n"
    )
    unlike = {"MATRYOSHKA_CLI_KEY": "sk-planted"}
    ended = CliRunner().invoke(app, ["models", "list", "--encoder", "127.0.0.1:1"], env=unlike)
    first, second = ended.stderr.splitlines()
    assert first == (
        "MATRYOSHKA_CLI_KEY is not a setting; did you mean MATRYOSHKA_CLI_API_KEY or "
        "MATRYOSHKA_CLI_TLS_KEY?"
    )
    assert second.startswith("nothing listens at 127.0.0.1:1: ")


def test_all_variables_of_commands_are_known():
    """Those that options name, and no others."""

    def named(command):
        for option in command.params:
            given = option.envvar or []
            yield from [given] if isinstance(given, str) else given
        for inner in getattr(command, "commands", {}).values():
            yield from named(inner)

    ours = {name for name in named(get_command(app)) if name.startswith("MATRYOSHKA_CLI_")}
    assert ours == set(VARIABLES)


def test_it_says_its_version():
    assert matryoshka("--version").stdout == f"{version('matryoshka-suite')}\n"


@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_key_that_would_protect_nothing_ends_the_process(tmp_path, place):
    """`up` reads its own key only; a single service's, alone, would leave all doors open."""
    given = {"MATRYOSHKA_ROUTER_API_KEY": "sk-planted"}
    if place == "file":
        (tmp_path / "matryoshka_router_api_key").write_text("sk-planted")
        given = {"MATRYOSHKA_UP_SECRETS_DIR": str(tmp_path)}
    ended = matryoshka("up", "--port", "0", **given)
    assert ended.returncode == 2
    assert "MATRYOSHKA_ROUTER_API_KEY would protect nothing under `matryoshka up`" in ended.stderr
    assert "sk-planted" not in ended.stderr + ended.stdout


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port"])
def test_a_taken_port_is_told_in_a_sentence(tmp_path, option):
    """Exit code 1, which port, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--http-port": "0", "--grpc-port": "0"} | {option: port}
        arguments = [part for pair in ports.items() for part in pair]
        ended = matryoshka("serve", "router", *arguments, "--data", str(tmp_path))
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "give another port" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr


def test_a_data_folder_that_is_none_is_told_in_a_sentence(tmp_path):
    """Exit code 2 before any work, which path, no traceback."""
    taken = tmp_path / "a-file"
    taken.write_text("")
    ended = matryoshka("serve", "router", "--http-port", "0", "--data", str(taken))
    assert ended.returncode == 2
    assert ended.stderr == f"--data must name a folder, or a new one: {taken}: File exists\n"


def test_a_data_folder_that_is_in_use_is_told_in_a_sentence(tmp_path):
    """Exit code 2, which folder, no traceback, and nothing was loaded in vain."""
    used = EdgeFolder(tmp_path / "router" / "collections")
    used.open()
    told = f"another router uses {tmp_path}/router/collections; stop it first"
    try:
        whole = matryoshka("up", "--port", "0", "--data", str(tmp_path))
        single = matryoshka("serve", "router", "--http-port", "0", "--grpc-port", "0",
                            "--data", str(tmp_path / "router"))  # fmt: skip
    finally:
        used.close()
    for ended in (whole, single):
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1] == told
        assert "Traceback" not in ended.stderr
    assert "encoder started" not in whole.stderr


@pytest.mark.parametrize("folder", ["nothing-here"])
def test_a_missing_corpus_ends_with_a_sentence(tmp_path, folder):
    """No traceback, and no service left running."""
    ended = matryoshka("demo", "--corpus", str(tmp_path / folder), "--output", str(tmp_path / "o"))
    assert ended.returncode == 2
    assert "nothing-here" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_corpus_too_small_ends_with_a_sentence(tmp_path):
    """The demo says how many documents it needs, before any service starts."""
    (tmp_path / "one.md").write_text("A sentence that asks. " + "And an answer to it. " * 5)
    ended = matryoshka("demo", "--corpus", str(tmp_path), "--output", str(tmp_path / "o"))
    assert ended.returncode == 2
    assert "holds 1 documents; the demo needs at least 100" in ended.stderr
    assert not (tmp_path / "o").exists()
