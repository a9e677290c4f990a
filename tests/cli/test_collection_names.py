"""`matryoshka alias` and `matryoshka delete`: what a name means, and what is gone."""

import grpc
import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.shared.pb import router_pb2 as pb
from services.shared.pb import router_pb2_grpc as pb_grpc
from tests.conftest import serve


@pytest.fixture(scope="module")
def router(process, tmp_path_factory):
    """A router of its own, over the encoder of `process`, with the collections old and new."""
    started = serve(
        tmp_path_factory.mktemp("names"), "serve", "router",
        MATRYOSHKA_ROUTER_ENCODER_ADDRESS=process.grpc,
    )  # fmt: skip
    with grpc.insecure_channel(started.grpc) as channel:
        stub = pb_grpc.RouterServiceStub(channel)
        for name in ("old", "new"):
            stub.CreateCollection(pb.CreateCollectionRequest(name=name, model="default"))
    yield started
    started.stop()


def test_an_alias_is_pointed_and_then_the_old_collection_deleted(router):
    """Not before: what an alias points at stays, and the error says what to do."""

    def run(*arguments):
        return CliRunner().invoke(app, [*arguments, "--router", router.grpc])

    def named(name):
        with grpc.insecure_channel(router.grpc) as channel:
            stub = pb_grpc.RouterServiceStub(channel)
            return stub.GetCollection(pb.GetCollectionRequest(name=name)).collection.name

    ended = run("alias", "live", "old")
    assert (ended.exit_code, ended.stdout) == (0, "live points at old\n")
    assert named("live") == "old"
    for arguments, told in (
        (("delete", "old"), "collection 'old' is what 'live' points at; point it at another one "
         "first: `matryoshka alias ALIAS COLLECTION`\n"),
        (("delete", "live"), "'live' is an alias of 'old'; delete a collection by its own name\n"),
        (("delete", "none"), "no collection or alias 'none'; `matryoshka collections` shows what "
         "there is\n"),
        (("alias", "live", "none"), "no collection or alias 'none'; `matryoshka collections` shows "
         "what there is\n"),
        (("alias", "new", "old"), "the name 'new' is taken by a collection or an alias\n"),
        (("alias", "a b", "old"), "ALIAS must be 1 to 255 letters, digits, '_', '-' or '.', the "
         "first a letter or digit\n"),
    ):  # fmt: skip
        ended = run(*arguments)
        assert (ended.exit_code, ended.stdout, ended.stderr) == (1, "", told)
    assert run("alias", "live", "new").exit_code == 0
    assert named("live") == "new"
    ended = run("delete", "old")
    assert (ended.exit_code, ended.stdout) == (0, "old is deleted\n")
    with pytest.raises(grpc.RpcError, match="no collection or alias 'old'"):
        named("old")
