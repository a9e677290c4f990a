"""Several models at once: loaded and unloaded while others serve, within a bound on memory."""

import asyncio
import json
import shutil

import grpc
import httpx
import pytest

from services.encoder.memory import check_fits, default_max_model_bytes, weight_bytes
from services.shared.errors import InvalidRequest, WrongState
from services.shared.folder import BASE_MODEL, locate
from services.shared.pb import encoder_pb2 as pb
from services.shared.pb import encoder_pb2_grpc as pb_grpc
from tests.conftest import serve

MIB = 2**20


def write_header(path, header):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_weights_are_counted_from_headers_alone(tmp_path):
    """The estimate is four bytes a number, of every file, whatever type they are stored in."""
    tensor = {"dtype": "F16", "shape": [1000, 1000], "data_offsets": [0, 2_000_000]}
    write_header(tmp_path / "model.safetensors", {"a": tensor, "__metadata__": {"format": "pt"}})
    (tmp_path / "2_Dense").mkdir()
    write_header(tmp_path / "2_Dense" / "model.safetensors", {"b": tensor | {"shape": []}})
    assert weight_bytes(tmp_path) == 4_000_004


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"PK"])
def test_a_file_that_is_none_is_told(tmp_path, content):
    """Whatever stands in it, the answer is a sentence, and nothing large is read."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidRequest, match="not a safetensors file"):
        weight_bytes(tmp_path)


def test_the_default_model_is_estimated_as_it_is_held():
    """The estimate is close to the weights themselves, and far below the default bound."""
    estimate = weight_bytes(locate(BASE_MODEL))
    assert 80 * MIB < estimate < 100 * MIB
    assert estimate < default_max_model_bytes()


def test_a_model_over_the_bound_is_refused_with_the_figures():
    """Wanted, held and allowed, and what to do."""
    check_fits("a", 600 * MIB, 400 * MIB, 1000 * MIB)
    with pytest.raises(
        WrongState, match=r"'a' takes 0.59 GiB.*already loaded take 0.49 GiB.*allows 0.98 GiB"
    ):
        check_fits("a", 600 * MIB, 501 * MIB, 1000 * MIB)


async def test_models_come_and_go_while_others_serve(tmp_path):
    """Under steady calls a model is loaded, used, and unloaded in use; no call fails.

    A third that would pass the bound is refused before its weights are read, and there is room
    for it once one has gone.
    """
    folders = []
    for name in ("second", "third"):
        folders.append(tmp_path / name)
        shutil.copytree(locate(BASE_MODEL), folders[-1])
        (folders[-1] / "special_tokens_map.json").write_text(json.dumps({"name": name}))
    # The default model takes 87 MiB of weights on disk, and may be held narrower.
    bound = {"MATRYOSHKA_ENCODER_MAX_MODEL_BYTES": str(180 * MIB)}
    process = serve(tmp_path, "serve", "encoder", MATRYOSHKA_ENCODER_PRECISION="float32", **bound)
    try:
        async with grpc.aio.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.EncoderServiceStub(channel)
            stop = asyncio.Event()
            callers = [asyncio.create_task(keep_calling(stub, stop, "")) for _ in range(2)]
            loaded = await stub.LoadModel(pb.LoadModelRequest(source=str(folders[0])))
            assert 80 * MIB < loaded.model.memory_bytes < 100 * MIB
            with pytest.raises(grpc.aio.AioRpcError, match="FAILED_PRECONDITION.*third.*allows"):
                await stub.LoadModel(pb.LoadModelRequest(source=str(folders[1])))
            users = [asyncio.create_task(keep_calling(stub, stop, "second")) for _ in range(3)]
            await asyncio.sleep(0.3)
            gauge = 'matryoshka_encoder_flops_utilization_ratio{model="second"}'
            assert gauge in httpx.get(f"{process.http}/metrics").text
            await stub.UnloadModel(pb.UnloadModelRequest(id="second"))
            assert gauge not in httpx.get(f"{process.http}/metrics").text
            await stub.LoadModel(pb.LoadModelRequest(source=str(folders[1])))
            stop.set()
            assert min(await asyncio.gather(*callers)) > 0
            assert min(await asyncio.gather(*users)) > 0
    finally:
        assert process.stop() == 0


async def keep_calling(stub, stop, model):
    """Call until told to stop, or until the model is gone; return how often it was answered."""
    answered = 0
    while not stop.is_set():
        try:
            text = f"{model} {answered}"
            await stub.Embed(pb.EmbedRequest(model=model, texts=[text]))
        except grpc.aio.AioRpcError as error:
            if model and error.code() == grpc.StatusCode.NOT_FOUND:
                break
            raise
        answered += 1
    return answered
