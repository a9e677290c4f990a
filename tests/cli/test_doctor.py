"""`matryoshka doctor`: real services, as they are and with one thing broken at a time."""

import asyncio
import dataclasses
import json
import re
import signal
import socket
import time

import grpc
import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from services.cli.doctor.checks import findings
from services.cli.doctor.facts import Facts, Failure, Grpc, Http, Service
from services.cli.doctor.probe import look_at
from services.cli.doctor.targets import Target, read_target
from services.cli.main import app
from services.shared.errors import InvalidRequest
from services.shared.pb import encoder_pb2, encoder_pb2_grpc, router_pb2, router_pb2_grpc
from tests.cli.test_commands import matryoshka
from tests.conftest import serve

KEY = "sk-planted-in-doctor"


def targets(process, **others):
    found = {name: Target(name, process.http, process.grpc, None)
             for name in ("encoder", "router", "trainer")} | others  # fmt: skip
    return [target for target in found.values() if target]


def look(all_targets):
    return asyncio.run(look_at(all_targets, 20.0))


def judged(facts, version="0.1.0"):
    """{(service, check): finding}; of several of one check the worst."""
    order = {"ok": 0, "warning": 1, "problem": 2}
    return {
        (one.about, one.check): one
        for one in sorted(findings(facts, version), key=lambda one: order[one.status])
    }


@pytest.fixture(scope="module")
def facts(process) -> Facts:
    return look(targets(process))


@pytest.fixture(scope="module")
def router(process, tmp_path_factory):
    """A router of its own with a key, over the encoder of `process`, slow to drain."""
    started = serve(
        tmp_path_factory.mktemp("doctor"), "serve", "router",
        MATRYOSHKA_ROUTER_API_KEY=KEY,
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=process.grpc,
        MATRYOSHKA_ROUTER_DRAIN_S="60",
    )  # fmt: skip
    yield started
    started.kill()


def make_collection(router, model):
    with grpc.insecure_channel(router.grpc) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        key = (("authorization", f"Bearer {KEY}"),)
        made = stub.CreateCollection(
            router_pb2.CreateCollectionRequest(name="notes", model=model), metadata=key
        )
        batch = router_pb2.UpsertRequest(
            collection="notes",
            points=[router_pb2.Point(id=str(number)) for number in range(3)],
            vectors=np.eye(3, 384).astype("<f4").tobytes(),
            space_id=made.collection.space_id,
        )
        assert [answer.num_points for answer in stub.Upsert(iter([batch]), metadata=key)] == [3]


def test_nothing_is_wrong_with_a_deployment_that_is_well(process):
    """The command as a user types it: a line for each thing, and 0."""
    addresses = [
        part
        for name in ("encoder", "router", "trainer")
        for part in (f"--{name}", process.grpc, f"--{name}-http", process.http)
    ]
    ended = matryoshka("doctor", *addresses, "--timeout", "30")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1].startswith("0 problems, ")
    assert all(re.match(r"(ok|warning) +(encoder|router|trainer|all) ", one) for one in lines[:-1])
    ended = matryoshka("doctor", *addresses, "--timeout", "30", "--json")
    said = json.loads(ended.stdout)
    assert said["counts"].get("problem", 0) == 0
    ok = {(one["about"], one["check"]) for one in said["findings"] if one["status"] == "ok"}
    assert ok >= {
        *((name, check) for name in ("encoder", "router", "trainer")
          for check in ("http", "grpc", "key", "clock", "metrics")),
        ("all", "versions"), ("encoder", "models"), ("router", "space"), ("router", "search"),
    }  # fmt: skip


def test_a_service_that_is_away_is_a_problem(process):
    """Both ports, each with where to look; the rest is looked at all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = Target("trainer", f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", None)
    found = judged(look(targets(process, trainer=away)))
    for check, option in (("http", "--trainer-http"), ("grpc", "--trainer")):
        assert found["trainer", check].status == "problem"
        assert str(port) in found["trainer", check].text
        assert option in found["trainer", check].todo
    assert found["router", "search"].status == "ok"


def test_a_service_at_anothers_address_is_a_problem(process, router):
    """A router is no encoder, whichever door is asked."""
    wrong = Target("encoder", router.http, router.grpc, KEY)
    found = judged(look([wrong]))
    assert found["encoder", "grpc"].status == "problem"
    assert "serves no encoder" in found["encoder", "grpc"].text
    assert found["encoder", "metrics"].status == "problem"


def test_a_missing_key_is_a_problem_and_a_given_one_is_shown_nowhere(router):
    """Without it calls are refused; with it they are not, and it is not printed."""
    bare = judged(look([Target("router", router.http, router.grpc, None)]))
    assert bare["router", "key"].status == "problem"
    assert "--api-key" in bare["router", "key"].todo
    target = Target("router", router.http, router.grpc, KEY)
    assert judged(look([target]))["router", "key"].status == "ok"
    assert KEY not in repr(target)
    ended = CliRunner().invoke(
        app,
        ["doctor", "--encoder", "none", "--trainer", "none", "--router", router.grpc,
         "--router-http", router.http, "--api-key", KEY],
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert KEY not in ended.output


def test_one_variable_holds_the_key_of_every_command(process, router, monkeypatch):
    """A refusal names it, and --api-key; with it doctor and the others are let in."""
    command = ["recall", "no-such-collection", "--router", router.grpc]
    bare = CliRunner().invoke(app, command)
    assert bare.exit_code == 1
    assert "--api-key, or in MATRYOSHKA_CLI_API_KEY" in bare.output
    # The environment is the interface under test.
    monkeypatch.setenv("MATRYOSHKA_CLI_API_KEY", KEY)
    let_in = CliRunner().invoke(app, command)
    assert "MATRYOSHKA_CLI_API_KEY" not in let_in.output
    assert "no-such-collection" in let_in.output
    ended = CliRunner().invoke(
        app,
        ["doctor", "--encoder", "none", "--trainer", "none", "--router", router.grpc,
         "--router-http", router.http],
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert KEY not in let_in.output + ended.output


def test_a_collection_whose_model_is_gone_is_a_problem(process, router):
    """The encoder served it when the collection was made, and does no more."""
    with grpc.insecure_channel(process.grpc) as channel:
        encoder = encoder_pb2_grpc.EncoderServiceStub(channel)
        encoder.LoadModel(encoder_pb2.LoadModelRequest(source="all-MiniLM-L6-v2", id="gone"))
        make_collection(router, "gone")
        whole = targets(process, router=Target("router", router.http, router.grpc, KEY))
        found = judged(look(whole))
        assert found["router", "space"].status == "ok"
        assert found["router", "search"].status == "ok"
        encoder.UnloadModel(encoder_pb2.UnloadModelRequest(id="gone"))
    found = judged(look(whole))
    assert found["router", "space"].status == "problem"
    assert "notes: the encoder does not serve its model gone" in found["router", "space"].text
    assert found["router", "search"].status == "problem"


def test_a_service_that_stops_is_a_problem(router):
    """While it drains it says so at both doors."""
    router.popen.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while httpx.get(f"{router.http}/readyz").status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = judged(look([Target("router", router.http, router.grpc, KEY)]))
    assert found["router", "http"].text.endswith("is not ready")
    assert found["router", "grpc"].text.endswith("says NOT_SERVING")
    assert found["router", "grpc"].status == found["router", "http"].status == "problem"


def with_http(facts, name, **changes):
    service = facts.services[name]
    http = dataclasses.replace(service.http, **changes)
    changed = dataclasses.replace(service, http=http)
    return dataclasses.replace(facts, services=facts.services | {name: changed})


def with_grpc(facts, name, **changes):
    service = facts.services[name]
    changed = dataclasses.replace(service, grpc=dataclasses.replace(service.grpc, **changes))
    return dataclasses.replace(facts, services=facts.services | {name: changed})


def with_metric(facts, name, pattern, line):
    """Real metrics with one line replaced, or added where there is none like it."""
    text = facts.services[name].http.metrics
    text, count = re.subn(pattern, line, text, count=1, flags=re.MULTILINE)
    return with_http(facts, name, metrics=text if count else f"{text}{line}\n")


# Of a real deployment one thing at a time that cannot be broken on purpose here.
BROKEN = {
    "clock": (lambda f: with_http(f, "router", skew_s=-45.0), ("router", "clock"), "problem",
              "45 s behind"),
    "clock a little": (lambda f: with_http(f, "router", skew_s=5.0), ("router", "clock"),
                       "warning", "5 s ahead of"),
    "no metrics": (lambda f: with_http(f, "encoder", metrics="not\0a page"),
                   ("encoder", "metrics"), "problem", "nothing that begins with"),
    "no number": (lambda f: with_metric(f, "encoder", r"^(matryoshka_encoder_models_bytes) .*",
                                        r"\1 NaN"),
                  ("encoder", "metrics"), "warning", "matryoshka_encoder_models_bytes"),
    "disk": (lambda f: with_metric(f, "trainer", r'^(matryoshka_server_disk_bytes.part="free".) .*',
                                   r"\1 1000000"), ("trainer", "disk"), "problem", "0.0 of"),
    "errors": (lambda f: with_metric(
        f, "router", "^no such line$",
        'matryoshka_router_requests_total{method="Search",outcome="INTERNAL"} 3.0'),
        ("router", "errors"), "warning", "3 of "),
    "load": (lambda f: with_metric(
        f, "encoder", "^no such line$",
        'matryoshka_encoder_requests_total{method="Embed",outcome="RESOURCE_EXHAUSTED"} 1e6'),
        ("encoder", "load"), "warning", "refused as too much"),
    "recall": (lambda f: with_metric(
        f, "router", "^no such line$",
        'matryoshka_router_recall_alarms_count{collection="docs",slice=""} 1.0'),
        ("router", "recall"), "warning", "fell below"),
    "storage": (lambda f: with_metric(
        with_http(f, "router", url="https://127.0.0.1:1"), "router",
        "^matryoshka_router_storage_count.*",
        'matryoshka_router_storage_count{encrypted="no",engine="qdrant"} 1.0'),
        ("router", "storage"), "warning", "MATRYOSHKA_ROUTER_QDRANT_URL as https://"),
    "version": (lambda f: with_metric(f, "router", r'version="[^"]*"', 'version="0.0.1"'),
                ("all", "versions"), "warning", "router 0.0.1"),
    "space": (lambda f: dataclasses.replace(f, models=tuple(
        dataclasses.replace(one, space_id="another") for one in f.models)),
        ("router", "space"), "problem", "makes another"),
    "size": (lambda f: dataclasses.replace(f, models=tuple(
        dataclasses.replace(one, dim=768) for one in f.models)),
        ("router", "space"), "problem", "makes 768"),
    "no model": (lambda f: dataclasses.replace(f, models=()), ("encoder", "models"), "problem",
                 "no model"),
    "gpu": (lambda f: dataclasses.replace(f, models=(
        *f.models, dataclasses.replace(f.models[0], id="fast", device="cuda:0"))),
        ("encoder", "gpu"), "warning", "others on cuda:0"),
    "change": (lambda f: dataclasses.replace(f, collections=tuple(
        dataclasses.replace(one, change_error="the disk is full") for one in f.collections)),
        ("router", "change"), "warning", "the disk is full"),
    "encoder away": (lambda f: dataclasses.replace(f, search=Failure(
        "UNAVAILABLE", "the encoder cannot be reached")), ("router", "search"), "problem",
        "MATRYOSHKA_ROUTER_ENCODER_ADDRESS"),
    "encoder's key": (lambda f: dataclasses.replace(f, search=Failure(
        "UNAUTHENTICATED", "no")), ("router", "search"), "problem",
        "MATRYOSHKA_ROUTER_ENCODER_API_KEY"),
    "scopes": (lambda f: with_grpc(f, "encoder", call=Failure(
        "PERMISSION_DENIED", "ListModels needs a key with the scope ADMIN")),
        ("encoder", "key"), "problem", "ListModels needs a key with the scope ADMIN"),
    "call": (lambda f: with_grpc(f, "encoder", call=Failure("INTERNAL", "a bug")),
             ("encoder", "call"), "problem", "a call failed: a bug"),
    "open": (lambda f: with_grpc(f, "router", address="10.0.0.1:9001"), ("router", "key"),
             "warning", "whoever reaches 10.0.0.1:9001"),
    "jobs": (lambda f: dataclasses.replace(f, failed_jobs=("ftjob-1",)), ("trainer", "jobs"),
             "warning", "ftjob-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name, facts):
    """One thing of what was really seen is changed: that is found, with what to do."""
    change, place, status, says = BROKEN[name]
    before, after = judged(facts), judged(change(facts))
    if place in before:
        assert before[place].status == "ok"
    assert after[place].status == status
    assert says in f"{after[place].text} {after[place].todo}"
    assert after[place].todo


def test_an_encoder_that_is_away_is_not_said_to_serve_no_model():
    """Nobody knows what it serves."""
    grpc_seen = Grpc("127.0.0.1:1", failure=Failure("UNAVAILABLE", "Connection refused"))
    found = judged(Facts({"encoder": Service(Http("http://x", error="away"), grpc_seen)}))
    assert found["encoder", "grpc"].status == "problem"
    assert ("encoder", "models") not in found


@pytest.mark.parametrize(
    ("url", "http_says", "grpc_says", "is_tls"),
    [
        ("https://x", "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
         "Ssl handshake failed", (True, True)),
        ("https://x", "Server disconnected", "Socket closed", (True, True)),
        ("http://x", "All connection attempts failed", "Connection refused", (False, False)),
    ],
)  # fmt: skip
def test_where_tls_fails_its_options_are_named(url, http_says, grpc_says, is_tls):
    """To start a service that runs would not help."""
    seen = Service(
        Http(url, error=http_says),
        Grpc("127.0.0.1:1", failure=Failure("UNAVAILABLE", grpc_says)),
    )
    found = judged(Facts({"router": seen}))
    todos = [found["router", check].todo for check in ("http", "grpc")]
    assert tuple("--tls-ca" in todo for todo in todos) == is_tls
    assert ("start it" in todos[1]) is not is_tls[1]


@pytest.mark.parametrize(
    ("refused", "over_limit", "is_told"), [(120, 0, True), (120, 120, False), (90, 0, False)]
)
def test_load_is_told_where_the_service_refused_and_often_enough(refused, over_limit, is_told):
    """Calls over a key's own limit are no load, and a handful of requests is no share."""
    metrics = (
        "# TYPE matryoshka_router_requests counter\n"
        'matryoshka_router_requests_total{method="Search",outcome="RESOURCE_EXHAUSTED"} '
        f"{refused}\n"
        "# TYPE matryoshka_router_over_limit counter\n"
        f'matryoshka_router_over_limit_total{{limit="requests"}} {over_limit}\n'
    )
    http = Http("http://x", is_live=True, is_ready=True, metrics=metrics)
    found = judged(Facts({"router": Service(http, Grpc("127.0.0.1:1", health="SERVING"))}))
    assert (("router", "load") in found) is is_told
    if is_told:
        assert found["router", "load"].text.endswith("as too much since it started")


def test_a_gpu_is_told_where_the_encoder_has_one(facts):
    models = tuple(dataclasses.replace(one, device="cuda:0") for one in facts.models)
    found = judged(dataclasses.replace(facts, models=models))
    assert found["encoder", "gpu"].text == "models run on cuda:0"
    assert ("encoder", "gpu") not in judged(facts)  # none here
    assert {one.device for one in facts.models} == {"cpu"}


def test_a_server_that_tells_nothing_of_its_clock_is_not_judged_by_it(facts):
    changed = with_http(facts, "router", skew_s=None)
    assert ("router", "clock") not in judged(changed)
    assert Http("http://x", error="away").skew_s is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--router", "here"], "--router must be host:port of gRPC"),
        (["--router-http", "localhost:8000"], "--router-http must be a URL"),
        (["--router", "none", "--encoder", "none", "--trainer", "none"], "every service is none"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says):
    ended = CliRunner().invoke(app, ["doctor", *arguments])
    assert ended.exit_code == 2
    assert says in ended.stderr


def test_a_service_may_be_none():
    assert read_target("trainer", "none", "127.0.0.1:1", None) is None
    with pytest.raises(InvalidRequest, match="or none"):
        read_target("trainer", "http://x", "x", None)


@pytest.mark.parametrize(
    ("grpc", "http"),
    [
        ("encoder:9000", "http://encoder:8000"),
        ("[::1]:9100", "http://[::1]:8100"),
        ("dns:///encoder.search.svc:9000", "http://encoder.search.svc:8000"),
    ],
)
def test_http_is_looked_for_beside_grpc(grpc, http):
    """At the port that is 1000 less, which `matryoshka up` and the services have by default."""
    assert read_target("encoder", None, grpc, None) == Target("encoder", http, grpc, None)


@pytest.mark.parametrize("grpc", ["127.0.0.1:443", "ipv4:127.0.0.1:9000"])
def test_where_http_is_must_be_said_if_grpc_does_not_tell(grpc):
    with pytest.raises(InvalidRequest, match="--router-http must be a URL"):
        read_target("router", None, grpc, None)


def test_one_variable_says_where_all_services_are():
    """As for the commands that call one; here nothing listens."""
    ended = CliRunner().invoke(
        app,
        ["doctor", "--json"],
        env={"MATRYOSHKA_CLI_ADDRESS": "127.0.0.1:1999", "MATRYOSHKA_CLI_API_KEY": KEY},
    )
    assert ended.exit_code == 1
    assert "127.0.0.1:1999" in ended.stdout
    assert "http://127.0.0.1:999" in ended.stdout
