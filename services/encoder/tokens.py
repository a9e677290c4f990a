"""From a request's inputs to tokens that the model can read: checked, counted, cut if wanted.

In: texts or a caller's own token ids, and images. Out: token ids with prompt and special tokens,
at most as long as the model reads. All that is wrong with them is found here, before any forward
pass.
"""

from collections.abc import Sequence
from typing import Literal

from services.shared.errors import InvalidRequest
from services.shared.model import Role, Side, TextModel
from services.shared.packing import Tokens

Truncation = Literal["refuse"] | Side


def read_tokens(
    text_model: TextModel,
    inputs: Sequence[str] | Sequence[Tokens],
    images: Sequence[bytes],
    role: Role,
    truncation: Truncation,
    max_request_tokens: int,
) -> tuple[list[Tokens], list[int]]:
    """Return the tokens of each text and then of each image, and the rows that were cut.

    Raises:
        InvalidRequest: a text is not Unicode or too long, a token id is not the model's, an image
            cannot be read, the model needs a role, or there are too many tokens together.
    """
    texts = _tokenize(text_model, inputs, role)
    max_tokens = text_model.tower(role).max_tokens
    too_long = [row for row, ids in enumerate(texts) if len(ids) > max_tokens]
    if too_long and truncation == "refuse":
        raise InvalidRequest(
            f"input {too_long[0]} has {len(texts[too_long[0]])} tokens, the model reads at "
            f"most {max_tokens}; shorten it or set truncate",
            "input",
        )
    if truncation != "refuse":
        for row in too_long:
            texts[row] = text_model.cut_tokens(texts[row], truncation)
    texts += [_read_image(text_model, image, role) for image in images]
    tokens = sum(map(len, texts))
    if tokens > max_request_tokens:
        raise InvalidRequest(
            f"a request may have at most {max_request_tokens} tokens, "
            f"this one has {tokens}; send it in parts",
            "input",
        )
    return texts, too_long


def _tokenize(
    text_model: TextModel, inputs: Sequence[str] | Sequence[Tokens], role: Role
) -> list[Tokens]:
    strings = [item for item in inputs if isinstance(item, str)]
    for row, text in enumerate(strings):
        if not is_unicode(text):
            raise InvalidRequest(f"input {row} must be valid Unicode text", "input")
    if strings:
        return text_model.tokenize(strings, role)
    return [text_model.wrap(item, role) for item in inputs if not isinstance(item, str)]


def _read_image(text_model: TextModel, image: bytes, role: Role) -> Tokens:
    try:
        return text_model.read_image(image, role)
    except InvalidRequest as error:
        # Callers send texts and images alike as `input`.
        param = "input" if error.param == "images" else error.param
        raise InvalidRequest(error.message, param) from error


def is_unicode(text: str) -> bool:
    """Say whether a text is one: JSON can smuggle in lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
