"""The body's parser: every body is taken or refused with a sentence, never a crash."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.encoder.openai_body import EmbeddingsBody, read_request
from services.shared.errors import InvalidRequest

PNG = base64.b64encode(b"\x89PNG and so on").decode()


def read(**fields):
    return read_request(json.dumps({"model": "m", "input": "x"} | fields).encode())


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*EmbeddingsBody.model_fields, "image", "surprise"])


@given(st.dictionaries(FIELDS, values, max_size=5))
def test_any_json_is_taken_or_refused(body):
    """Whatever the fields hold, the outcome is a request or one clear sentence."""
    model = None
    with contextlib.suppress(InvalidRequest):
        model = read_request(json.dumps(body).encode()).wanted.model
    assert model in (None, body.get("model"))


@given(st.binary(max_size=40))
def test_any_bytes_are_refused(content):
    """No bytes make the parser crash, and few are a JSON object with a model and an input."""
    with pytest.raises(InvalidRequest):
        read_request(content)


@pytest.mark.parametrize(
    ("given_", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([], []),
        ([[]], [[]]),
    ],
)
def test_the_four_kinds_of_input(given_, inputs):
    """As OpenAI's, and empty ones are for the embedder to refuse."""
    assert list(read(input=given_).wanted.inputs) == inputs


@given(st.lists(st.tuples(st.booleans(), st.text(min_size=1)), min_size=1, max_size=8))
def test_texts_and_images_keep_their_places(items):
    """The embedder takes texts first; `places` says where each belongs."""
    wanted = [
        {"image": base64.b64encode(text.encode()).decode()} if is_image else text
        for is_image, text in items
    ]
    request = read(input=wanted)
    behind = [*request.wanted.inputs, *(image.decode() for image in request.wanted.images)]
    places = request.places or range(len(items))
    assert sorted(places) == list(range(len(items)))
    for place, text in zip(places, behind, strict=True):
        assert items[place][1] == text


@pytest.mark.parametrize("image", [PNG, f"data:image/png;base64,{PNG}"])
def test_an_image_is_base64_or_a_data_url(image):
    """Both give the file's bytes."""
    assert read(input=[{"image": image}]).wanted.images == [b"\x89PNG and so on"]


@pytest.mark.parametrize(
    "image",
    [
        "https://example.org/cat.png",
        "file:///etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "not base64!",
        "AAA",
        "data:image/png;base64,",
    ],
)
def test_an_image_is_never_fetched(image):
    """Whatever is not the file itself is refused, with its place and what would be taken."""
    with pytest.raises(InvalidRequest, match="input 1 must hold an image as base64.*never fetched"):
        read(input=["x", {"image": image}])


def test_an_image_object_holds_nothing_else():
    """A field too many is an error, not ignored."""
    with pytest.raises(InvalidRequest, match='array of strings and {"image"'):
        read(input=[{"image": PNG, "detail": "high"}])


@pytest.mark.parametrize(
    ("truncate", "expected"),
    [(True, "end"), ("end", "end"), ("start", "start"), (False, "refuse"), (None, "refuse")],
)
def test_truncation_has_sides(truncate, expected):
    """True is the end, as before there were sides."""
    assert read(truncate=truncate).wanted.truncation == expected
