"""A model's head over the wire, from a real encoder with models that real jobs have made."""

import shutil
from dataclasses import replace

import grpc
import numpy as np
import pytest

from services.encoder.head import Head
from services.encoder.settings import EncoderSettings
from services.encoder.wire import write_head
from services.shared.card import read_card, write_card
from services.shared.errors import WrongState
from services.shared.folder import space_id
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from services.shared.vectors import normalize
from services.trainer.results.layout import read_json, read_modules, write_json
from tests.conftest import serve
from tests.trainer.conftest import make_job, make_tiny_model, make_tiny_pairs, start_job

TEXTS = ["red cat sees the house", "river", "blue stone opens"]
ROLES = [pb.ROLE_QUERY, pb.ROLE_DOCUMENT, pb.ROLE_UNSPECIFIED]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{id: folder}: a base, two heads over it, and what full training makes of one of these."""
    folder = tmp_path_factory.mktemp("models")
    base = make_tiny_model(tmp_path_factory.mktemp("tiny")).rename(folder / "base")
    config = base / "config_sentence_transformers.json"
    write_json(config, read_json(config) | {"prompts": {"query": "find slow "}})
    train(folder, base, rotation={"head": "rotation"}, dense={"head": "dense"})
    train(folder, folder / "rotation" / "model", full={"method": "full"})
    return {"base": base} | {
        name: folder / name / "model" for name in ("rotation", "dense", "full")
    }


def train(folder, base, **jobs):
    """Run jobs side by side to their end."""
    pairs, quick = make_tiny_pairs(), {"steps": 20, "batch_size": 8}
    made = [
        make_job(folder / name, base, pairs, **wanted, **quick) for name, wanted in jobs.items()
    ]
    for job, process in [(job, start_job(job)) for job in made]:
        assert process.wait() == 0, (job / "log.txt").read_text()


@pytest.fixture(scope="module")
def process(tmp_path_factory, models):
    process = serve(
        tmp_path_factory.mktemp("encoder"), "serve", "encoder",
        MATRYOSHKA_ENCODER_MODEL=str(models["base"]), MATRYOSHKA_ENCODER_PRECISION="float32",
    )  # fmt: skip
    with grpc.insecure_channel(process.grpc) as channel:
        for name, folder in models.items():
            request = pb.LoadModelRequest(source=str(folder), id=name)
            pb_grpc.EncoderServiceStub(channel).LoadModel(request)
    yield process
    assert process.stop() == 0


@pytest.fixture
async def stub(process):
    async with grpc.aio.insecure_channel(process.grpc) as channel:
        yield pb_grpc.EncoderServiceStub(channel)


async def embed(stub, model, role):
    """Full vectors as they are served."""
    answer = await stub.Embed(pb.EmbedRequest(model=model, texts=TEXTS, role=role))
    return np.frombuffer(answer.vectors[0].data, "<f4").reshape(len(TEXTS), 32)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["rotation", "dense"])
async def test_stored_vectors_become_those_of_the_model(stub, name, role):
    """With nothing but what the wire says, and in no other way."""
    head = await stub.GetHead(pb.GetHeadRequest(model=name))
    assert head.dim == 32
    weight = np.frombuffer(head.weight, "<f4").reshape(32, 32)
    stored, wanted = await embed(stub, "base", role), await embed(stub, name, role)
    assert (normalize(stored @ weight.T) * wanted).sum(axis=1).min() > 0.9999
    assert (normalize(stored @ weight) * wanted).sum(axis=1).min() < 0.99
    assert (stored * wanted).sum(axis=1).min() < 0.99


async def test_only_a_rotation_is_orthogonal(stub):
    """And only it keeps the scores of stored vectors."""
    heads = {n: await stub.GetHead(pb.GetHeadRequest(model=n)) for n in ("rotation", "dense")}
    assert {name: head.orthogonal for name, head in heads.items()} == {
        "rotation": True,
        "dense": False,
    }
    stored = await embed(stub, "base", pb.ROLE_DOCUMENT)
    for name, head in heads.items():
        turned = normalize(stored @ np.frombuffer(head.weight, "<f4").reshape(32, 32).T)
        change = np.abs(turned @ turned.T - stored @ stored.T).max()
        assert (change < 1e-5) == head.orthogonal, name


async def test_every_answer_names_the_spaces(stub):
    """The base's own, the same in the list, in one model, after loading, and beside the head."""
    listed = {m.id: m for m in (await stub.ListModels(pb.ListModelsRequest())).models}
    space = listed["base"].space_id
    assert {name: model.base_space_id for name, model in listed.items()} == {
        "base": "", "rotation": space, "dense": space, "full": "",
    }  # fmt: skip
    for name, model in listed.items():
        assert (await stub.GetModel(pb.GetModelRequest(model=name))).model == model
    await stub.SetAlias(pb.SetAliasRequest(alias="next", model="dense"))
    head = await stub.GetHead(pb.GetHeadRequest(model="next"))
    assert (head.space_id, head.base_space_id) == (listed["dense"].space_id, space)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("base", "FAILED_PRECONDITION", "'base' is no head over a known base"),
        ("", "FAILED_PRECONDITION", "'base' is no head over a known base"),
        ("full", "FAILED_PRECONDITION", "'full' is no head over a known base"),
        ("gone", "NOT_FOUND", "there are: base, default, dense"),
    ],
)
async def test_what_is_no_head_is_refused(stub, model, code, message):
    """One sentence; the default alias is the base here."""
    with pytest.raises(grpc.aio.AioRpcError, match=f"(?s)StatusCode.{code}.*{message}"):
        await stub.GetHead(pb.GetHeadRequest(model=model))


@pytest.mark.parametrize(
    "change", [{"activation_function": "torch.nn.modules.activation.Tanh"}, {"use_residual": True}]
)
async def test_a_card_that_claims_a_head_where_there_is_none_is_refused(
    stub, models, tmp_path, change
):
    """No matrix is answered that would not make the model's vectors."""
    folder = tmp_path / "changed"
    shutil.copytree(models["dense"], folder)
    config = read_modules(folder)[-2][1] / "config.json"
    write_json(config, read_json(config) | change)
    card = read_card(folder)
    space = space_id(folder, card.pre_op, card.prompts)
    write_card(folder, card.model_copy(update={"space_id": space}))
    await stub.LoadModel(pb.LoadModelRequest(source=str(folder), id="changed"))
    try:
        with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION.*not end in a head"):
            await stub.GetHead(pb.GetHeadRequest(model="changed"))
    finally:
        await stub.UnloadModel(pb.UnloadModelRequest(id="changed"))


def test_a_wide_head_is_one_message_by_default():
    """36 MiB at 3072 numbers; one of 4096 needs a greater bound, and the error says so."""
    bound = EncoderSettings().max_message_bytes
    head = Head("s", "b", np.zeros((3072, 3072), np.float32), False)
    assert len(write_head(head, bound).weight) == 36 * 2**20
    with pytest.raises(WrongState, match=f"may have {bound}; give .* max_message_bytes"):
        write_head(replace(head, weight_DD=np.zeros((4096, 4096), np.float32)), bound)


async def test_a_head_longer_than_a_message_is_refused_with_both_figures(tmp_path, models):
    """Not as an encoder that is busy, which a caller would ask again."""
    process = serve(
        tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_MODEL=str(models["rotation"]),
        MATRYOSHKA_ENCODER_MAX_MESSAGE_BYTES="4096",
    )  # fmt: skip
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            message = "FAILED_PRECONDITION.*head has 4[12].. bytes and a message may have 4096"
            with pytest.raises(grpc.aio.AioRpcError, match=message):
                await pb_grpc.EncoderServiceStub(channel).GetHead(pb.GetHeadRequest())
    finally:
        assert process.stop() == 0
