"""`matryoshka models`: an encoder's models, loaded, named and unloaded from the command line."""

import pytest

from tests.cli.test_commands import matryoshka


def models(process, *arguments):
    return matryoshka("models", *arguments, "--encoder", process.grpc, COLUMNS="200")


def test_a_model_is_loaded_named_and_unloaded(process):
    """Each step shows in the list; one that a name points at is refused."""
    ended = models(process, "load", "matryoshka-MiniLM-L6-v2", "--id", "second")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("second is served: 384 dimensions, ")
    ended = models(process, "alias", "newest", "second")
    assert (ended.returncode, ended.stdout) == (0, "newest points at second\n")
    listed = models(process, "list").stdout
    (second,) = (line for line in listed.splitlines() if "second" in line)
    assert "newest" in second
    assert "matryoshka-MiniLM-L6-v2" in listed

    ended = models(process, "unload", "second")
    assert ended.returncode == 1
    assert "newest points at" in ended.stderr
    assert models(process, "alias", "newest", "matryoshka-MiniLM-L6-v2").returncode == 0
    ended = models(process, "unload", "second")
    assert (ended.returncode, ended.stdout) == (0, "second is not served any more\n")
    assert "second" not in models(process, "list").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["load", "no-such-folder"], "no model folder at 'no-such-folder'"),
        (["alias", "x", "nobody"], "nobody"),
    ],
)
def test_a_mistake_is_one_sentence(process, arguments, says):
    ended = models(process, *arguments)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_without_a_port_is_told_how_it_should_be():
    """gRPC would try port 443."""
    ended = matryoshka("models", "list", "--encoder", "localhost")
    assert ended.returncode == 2
    assert "--encoder must be host:port of gRPC, such as 127.0.0.1:9000" in ended.stderr
