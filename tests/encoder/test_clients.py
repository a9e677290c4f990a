"""What people's programs use works against a running encoder, as it is."""

import functools

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding

from services.shared.folder import DEFAULT_MODEL, locate

TEXTS = ["nested dolls", "a prefix of a vector", "three services on one wire"]


@pytest.fixture
def url(encoder_process):
    return f"{encoder_process.http}/v1"


@pytest.fixture
def expected(url):
    """The vectors that the official client gets, as numbers."""
    with openai.OpenAI(base_url=url, api_key="none") as client:
        answer = client.embeddings.create(model="default", input=TEXTS, encoding_format="float")
    return np.array([row.embedding for row in answer.data])


def same(vectors, expected):
    """Equal up to the batch's arithmetic; unit length."""
    vectors = np.array(vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    return (vectors * expected).sum(axis=-1).min() > 0.9999


async def test_the_asynchronous_openai_client(url, expected):
    """Its default, base64, and what `extra_body` carries."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        answer = await client.embeddings.create(model="default", input=TEXTS)
        assert same([row.embedding for row in answer.data], expected)
        stored = await client.embeddings.create(
            model="default",
            input=TEXTS,
            dimensions=64,
            encoding_format="float",
            extra_body={"output_dtype": "ubinary", "input_type": "document"},
        )
        bits = np.packbits(expected[:, :64] > 0, axis=1)
        # A number next to zero may fall on either side, by the batch it ran in.
        assert (
            np.bitwise_count(bits ^ np.array([r.embedding for r in stored.data], np.uint8)).sum()
            <= 3
        )
        with pytest.raises(openai.BadRequestError) as error:
            await client.embeddings.create(model="default", input=TEXTS, dimensions=999)
        assert error.value.param == "dimensions"


@pytest.fixture
async def langchain(url):
    """Makes LangChain's embeddings over HTTP clients that are closed at the end."""
    with httpx.Client() as http_client:
        async with httpx.AsyncClient() as http_async_client:
            yield functools.partial(
                OpenAIEmbeddings, model="default", base_url=url, api_key="none",
                http_client=http_client, http_async_client=http_async_client,
            )  # fmt: skip


@pytest.fixture
async def llama_index(url):
    """The same for LlamaIndex's."""
    with httpx.Client() as http_client:
        async with httpx.AsyncClient() as async_http_client:
            yield functools.partial(
                OpenAIEmbedding, model_name="default", api_base=url, api_key="none",
                http_client=http_client, async_http_client=async_http_client,
            )  # fmt: skip


async def test_langchain(langchain, expected):
    """Texts as texts (`check_embedding_ctx_length=False`, as every compatible server wants)."""
    embeddings = langchain(check_embedding_ctx_length=False)
    assert same(embeddings.embed_documents(TEXTS), expected)
    assert same(embeddings.embed_query(TEXTS[0]), expected[0])
    assert same(await embeddings.aembed_documents(TEXTS), expected)
    short = langchain(check_embedding_ctx_length=False, dimensions=64)
    assert len(short.embed_query("x")) == 64


def test_langchain_with_the_models_own_tokenizer(langchain, expected):
    """It counts tokens with the served model's files, and splits what is too long."""
    embeddings = langchain(
        tiktoken_enabled=False,
        tiktoken_model_name=str(locate(DEFAULT_MODEL)),
        embedding_ctx_length=254,
    )
    assert same(embeddings.embed_documents(TEXTS), expected)
    (long,) = embeddings.embed_documents(["a word and another " * 200])
    assert np.linalg.norm(long) == pytest.approx(1, abs=1e-3)


def test_langchain_carries_our_fields(langchain):
    """Through its `model_kwargs`."""
    embeddings = langchain(
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"input_type": "query", "truncate": True}},
    )
    assert len(embeddings.embed_query("word " * 400)) == 384


async def test_llama_index(llama_index, expected):
    """One text, many, and both without blocking."""
    embedding = llama_index()
    assert same(embedding.get_text_embedding_batch(TEXTS), expected)
    assert same(embedding.get_query_embedding(TEXTS[0]), expected[0])
    assert same(await embedding.aget_text_embedding_batch(TEXTS), expected)
    short = llama_index(dimensions=64, additional_kwargs={"extra_body": {"input_type": "document"}})
    assert len(short.get_text_embedding("x")) == 64
