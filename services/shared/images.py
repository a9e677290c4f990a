"""Pictures as a model takes them: decoded within bounds, then prepared by the model's processor.

In: the bytes of a PNG, JPEG or WebP file. Out: token ids with the pixels beside them; its length
is its number of tokens, so that token budgets hold for pictures too. Never fetches anything.

Shapes: D full width.
"""

import binascii
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from services.shared.errors import InvalidRequest
from services.shared.packing import Tokens
from services.shared.tower import Role, Tower

_FORMATS = ("PNG", "JPEG", "WEBP")
# A page scanned at 600 dpi has 35 million pixels; decoded, each takes three bytes.
_MAX_PIXELS = 40_000_000


class ImageTokens(Tokens):
    """A picture's token ids, with what else the forward pass takes.

    Args:
        tokens: with the prompt, the chat template, and a placeholder for each patch.
        features: from the model's processor, as it takes them.
        role: which tower reads it.
    """

    def __init__(self, tokens: Tokens, features: Mapping[str, Any], role: Role) -> None:
        super().__init__(tokens)
        self.features = features
        self.role: Role = role


def read_image(tower: Tower, data: bytes, prompt: str = "", role: Role = "none") -> ImageTokens:
    """Turn a picture's file into what `embed_image` takes.

    Raises:
        InvalidRequest: it is not a whole PNG, JPEG or WebP file, moves, is too large, or gives
            more tokens than the model reads.
    """
    image = decode(data)
    try:
        features = tower.modules[0].preprocess(
            [image], prompt=prompt or None, processing_kwargs={"text": {"truncation": False}}
        )
    except ValueError as error:
        # Processors refuse, for example, a picture that is 200 times as wide as it is high.
        raise InvalidRequest(
            f"images must fit the model's processor, which says: {error}", "images"
        ) from error
    tokens = features["input_ids"][0].tolist()
    if len(tokens) > tower.max_tokens:
        raise InvalidRequest(
            f"images must give at most {tower.max_tokens} tokens, this one of {image.width} by "
            f"{image.height} pixels gives {len(tokens)}; send it smaller",
            "images",
        )
    return ImageTokens(tokens, features, role)


def embed_image(tower: Tower, image: ImageTokens) -> torch.Tensor:
    """Run the forward pass for one picture; alone, as its patches fill a batch by themselves.

    Returns:
        vector_D: float32 on the model's device, before the pre-op.
    """
    features = {
        name: value.to(tower.device) if isinstance(value, torch.Tensor) else value
        for name, value in image.features.items()
    }
    for module in tower.modules:
        features = module(features)
    vector_D: torch.Tensor = features["sentence_embedding"][0].float()
    return vector_D


def from_base64(image: str) -> bytes:
    """Read a file's base64, or the data URL around it; ValueError if it is neither."""
    head, comma, data = image.partition(",")
    if comma and not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError("another kind of URL")
    file = binascii.a2b_base64(data if comma else image, strict_mode=True)
    if not file:
        raise ValueError("empty")
    return file


def decode(data: bytes) -> Image.Image:
    """Decode a file's first and only picture to RGB.

    Raises:
        InvalidRequest: it is not a whole PNG, JPEG or WebP file, moves, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        pixels = image.width * image.height
        if pixels > _MAX_PIXELS:
            raise InvalidRequest(
                f"images may have at most {_MAX_PIXELS} pixels, this one has {pixels}", "images"
            )
        if getattr(image, "n_frames", 1) > 1:
            raise InvalidRequest("images must not move; send one frame", "images")
        image.load()
        return image.convert("RGB")
    # Pillow's own bound, which it checks first: a warning, and from twice as many on an error.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(
            f"images may have at most {_MAX_PIXELS} pixels, this one has far more", "images"
        ) from None
    # Broken files make decoders fail in many ways; each means the same.
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, OverflowError) as error:
        raise InvalidRequest("images must be whole PNG, JPEG or WebP files", "images") from error
