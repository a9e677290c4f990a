"""What a command says where the service that it calls cannot be reached, or refuses."""

import http.server
import socket
import threading

import grpc
import pytest
import typer
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.peer import call
from tests.cli.test_commands import matryoshka

AWAY = grpc.StatusCode.UNAVAILABLE


def told(capsys, code, details):
    """Return what is printed where a service ends a call so."""

    def refuse():
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(code, nothing, nothing, details)

    with pytest.raises(typer.Exit) as ended:
        call(refuse, "--router", "router:9000")
    assert ended.value.exit_code == 1
    return capsys.readouterr().err


def test_where_nothing_listens_it_is_said_how_to_start_or_find_it():
    """One line: nobody is sent to look for certificates."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    ended = matryoshka("collections", "--router", address)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"nothing listens at {address}: start `matryoshka up`, or give --router (the port of gRPC, "
        "which `up` prints at its start)\n"
    )


def test_a_port_of_http_is_told_from_one_of_grpc():
    """Who copies the address from a browser is told where the other port is."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    try:
        ended = CliRunner().invoke(app, ["models", "list", "--encoder", address])
    finally:
        server.shutdown()
        server.server_close()
    assert ended.exit_code == 1
    assert ended.stderr.endswith(
        f"{address} speaks no gRPC, and is likely the port of HTTP: give --encoder the port of "
        "gRPC, which for `matryoshka up` is the one of HTTP and 1000, unless it was set\n"
    )


def test_where_it_may_be_tls_its_option_is_named(capsys):
    """So a server that speaks it ends a connection without; the words are gRPC's."""
    closed = "connections to all backends failing; last error: UNAVAILABLE: ...: Socket closed"
    assert told(capsys, AWAY, closed) == (
        f"{closed}\n--router is router:9000: host:port of the router's gRPC; if that speaks TLS, "
        "give its CA: matryoshka --tls-ca FILE ...\n"
    )


def test_a_service_that_misses_another_one_is_not_said_to_be_away(capsys):
    """Its words hold gRPC's, of an address that the user did not give."""
    missed = "the encoder cannot be reached or is not ready: connections to all backends failing; "
    shown = told(capsys, AWAY, f"{missed}last error: UNKNOWN: ...: Connection refused")
    assert shown.startswith(missed)
    assert "nothing listens" not in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["calibrate", "docs", "--target", "1.5"], "--target must be above 0 and below 1, got 1.5"),
        (["calibrate", "docs", "--limit", "9999"], "--limit must be between 1 and 1000, got 9999"),
        (["calibrate", "docs", "--queries", "FILE"], "--queries: at least 100 are needed, got 1"),
        (["nest", "docs", "--target", "1.5"], "--target must be above 0 and below 1, got 1.5"),
        (["nest", "docs", "--sizes", "63"], "--sizes: the dim of a nested one must be a multiple"),
        (["index", "new", "FILE", "--create", "--dims", "999"], "--dims: dim must be between"),
        (["index", "new", "FILE", "--create", "--words", "no"], "--words must be one of any, "),
    ],
)
def test_what_a_service_refuses_is_told_by_the_options_name(process, tmp_path, arguments, says):
    """A user of the command line has not read the protos."""
    file = tmp_path / "lines.txt"
    file.write_text("A line of text.\n")
    given = [str(file) if part == "FILE" else part for part in arguments]
    where = ["--state", str(tmp_path / "state")] if given[0] == "index" else []
    ended = CliRunner().invoke(app, [*given, *where, "--router", process.grpc])
    assert ended.exit_code in (1, 2)
    assert ended.stderr.startswith(says)
    assert len(ended.stderr.splitlines()) == 1
