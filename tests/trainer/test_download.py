"""Files of web servers: real servers on this machine, honest and hostile ones."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from services.shared.errors import InvalidRequest, PermissionDenied, TooLarge, TooSlow
from services.trainer.data.allowed import read_list
from services.trainer.data.download import Downloads

BODY = b'{"anchor": "a", "positive": "b"}\n' * 4
LOOPBACK = "127.0.0.0/8,::1/128"


def answer(status="200 OK", body=b"", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextmanager
def serving(respond):
    """A server that hands each request's path and the connection to `respond`."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, requests, threads = listener.getsockname()[1], [], []

    def handle(connection):
        with connection:
            head = b""
            while b"\r\n\r\n" not in head and (piece := connection.recv(4096)):
                head += piece
            if head:
                requests.append(head.decode())
                with suppress(OSError):  # the client may hang up
                    respond(head.split(b" ")[1].decode(), connection)

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield port, requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in (accepting, *threads):
            thread.join()


def downloads(*sources, networks=LOOPBACK, max_bytes=10_000, timeout_s=10.0, **options):
    allowed = read_list(",".join(sources), networks)
    return Downloads(allowed, max_bytes, timeout_s, **options)


def test_a_file_arrives_as_it_is(tmp_path):
    """Its bytes, from a server that is asked under its own name, with the query."""
    with serving(lambda path, c: c.sendall(answer(body=BODY))) as (port, requests):
        url = f"http://127.0.0.1:{port}/set/a.jsonl?signature=s"
        downloads(f"http://127.0.0.1:{port}").fetch(url, tmp_path / "x", "training_file")
    assert (tmp_path / "x").read_bytes() == BODY
    assert requests[0].startswith("GET /set/a.jsonl?signature=s HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{port}\r\n" in requests[0]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fe80::1%eth0"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["100.64.0.1"],
        ["93.184.216.34", "127.0.0.1"],
    ],
)
def test_private_addresses_are_never_connected_to(tmp_path, addresses):
    """However they are written, and also if only one of a name's addresses is private."""
    fetch = downloads(
        "http://sets.example", networks=None, resolve=lambda host, port: addresses
    ).fetch
    with pytest.raises(PermissionDenied, match="private address"):
        fetch("http://sets.example/a", tmp_path / "x", "training_file")


def test_a_name_that_leads_elsewhere_later_changes_nothing(tmp_path):
    """A name is looked up once for a connection, and that connection goes where was checked."""
    answers = []

    def rebinding(host, port):
        answers.append(host)
        return ["127.0.0.1"] if len(answers) == 1 else ["10.0.0.1"]

    with serving(lambda path, c: c.sendall(answer(body=BODY))) as (port, requests):
        fetch = downloads(f"http://sets.example:{port}", resolve=rebinding).fetch
        fetch(f"http://sets.example:{port}/a", tmp_path / "x", "training_file")
        assert answers == ["sets.example"]
        assert f"Host: sets.example:{port}\r\n" in requests[0]
        # The next connection looks anew, and is checked anew.
        with pytest.raises(PermissionDenied, match="private"):
            fetch(f"http://sets.example:{port}/a", tmp_path / "x", "training_file")
    assert len(requests) == 1


def test_a_redirect_on_the_same_host_is_followed(tmp_path):
    """To where the list allows."""

    def respond(path, connection):
        is_last = path == "/sets/b"
        connection.sendall(
            answer(body=BODY) if is_last else answer("302 Found", Location="/sets/b")
        )

    with serving(respond) as (port, _):
        url = f"http://127.0.0.1:{port}/sets/a"
        downloads(f"http://127.0.0.1:{port}/sets").fetch(url, tmp_path / "x", "training_file")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/sets/b",
        "http://127.0.0.1:1/sets/b",
        "https://127.0.0.1:{port}/sets/b",
        "//169.254.169.254/latest/meta-data",
        "/secret",
        "/sets/../secret",
        "/sets/%2e%2e/secret",
        "file:///etc/passwd",
        "http://me@127.0.0.1:{port}/sets/b",
    ],
)
def test_a_redirect_elsewhere_is_refused(tmp_path, location):
    """Another host, port, scheme, or a path that is not on the list: nothing is asked there."""

    def respond(path, connection):
        connection.sendall(answer("307 Moved", Location=location.format(port=port)))

    with serving(respond) as (port, requests):
        fetch = downloads(f"http://127.0.0.1:{port}/sets", f"http://localhost:{port}").fetch
        with pytest.raises((PermissionDenied, InvalidRequest), match="redirects to"):
            fetch(f"http://127.0.0.1:{port}/sets/a", tmp_path / "x", "training_file")
    assert len(requests) == 1
    assert not (tmp_path / "x").exists()


def test_redirects_end(tmp_path):
    """After the fifth."""
    with serving(lambda path, c: c.sendall(answer("302 Found", Location=path))) as (port, requests):
        fetch = downloads(f"http://127.0.0.1:{port}").fetch
        with pytest.raises(InvalidRequest, match="more than 5 redirects"):
            fetch(f"http://127.0.0.1:{port}/a", tmp_path / "x", "training_file")
    assert len(requests) == 6


def drip(path, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def drip_head(path, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        time.sleep(0.02)


def silent(path, connection):
    connection.recv(1)


@pytest.mark.parametrize("respond", [drip, drip_head, silent])
def test_a_server_that_takes_its_time_is_left(tmp_path, respond):
    """Whether it says nothing, or a little again and again."""
    with serving(respond) as (port, _):
        fetch = downloads(f"http://127.0.0.1:{port}", timeout_s=0.3).fetch
        with pytest.raises(TooSlow, match="within 0.3 s"):
            fetch(f"http://127.0.0.1:{port}/a", tmp_path / "x", "training_file")


def endless(path, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 4096)


def claiming(path, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\nx")


@pytest.mark.parametrize("respond", [endless, claiming])
def test_a_body_without_end_is_cut(tmp_path, respond):
    """At the bound, whether the length was said before or not."""
    with serving(respond) as (port, _):
        fetch = downloads(f"http://127.0.0.1:{port}").fetch
        with pytest.raises(TooLarge, match="10000 bytes"):
            fetch(f"http://127.0.0.1:{port}/a", tmp_path / "x", "training_file")


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (lambda path, c: c.sendall(answer("404 Not Found")), "status 404"),
        (lambda path, c: c.sendall(answer(body=BODY, Content_Encoding="gzip")), "packed"),
        (lambda path, c: c.sendall(answer(body=BODY)[:-5]), "broke off"),
        (lambda path, c: c.sendall(b"SSH-2.0-OpenSSH\r\n"), "broke off"),
        (lambda path, c: None, "broke off"),
    ],
)
def test_what_is_no_whole_file_is_told(tmp_path, respond, said):
    """Without the address, whose query may be a key."""
    with serving(respond) as (port, _):
        fetch = downloads(f"http://127.0.0.1:{port}").fetch
        with pytest.raises(InvalidRequest, match=said) as caught:
            fetch(f"http://127.0.0.1:{port}/a?key=secret", tmp_path / "x", "training_file")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "entry",
    ["sets", "ftp://host/a", "https://", "https://me:pass@host/", "https://host/#a", "s3://b/../c"],
)
def test_a_wrong_entry_of_the_list_is_refused(entry):
    """With what would be accepted."""
    with pytest.raises(ValueError, match="absolute folders and addresses"):
        read_list(entry, None)
    with pytest.raises(ValueError, match="must be networks"):
        read_list(None, "10.1.0.0/33")
