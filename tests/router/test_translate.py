"""Vectors of one space from those of another: which heads go which way."""

import numpy as np
import pytest

from services.router.encoder_client import EncoderClient, Head
from services.router.sizes import SizeRequest, resolve_sizes
from services.router.storage.store import Collection, Point
from services.router.translate import Translator
from services.shared.errors import WrongState
from services.shared.vectors import normalize

DIM = 8
SIZES = resolve_sizes([SizeRequest(4)], DIM)
BASE = Collection("base", "base", "space-base", SIZES)
TRAINED = Collection("trained", "trained", "space-trained", SIZES)
RNG = np.random.default_rng(0)
DENSE_DD = RNG.standard_normal((DIM, DIM)).astype(np.float32)
ROTATION_DD = np.linalg.qr(DENSE_DD)[0]
VECTORS_BD = normalize(RNG.standard_normal((3, DIM)).astype(np.float32))


class Heads(EncoderClient):
    """An encoder that knows the head of one model, and is asked for no vector."""

    def __init__(self, weight_DD: np.ndarray, is_orthogonal: bool) -> None:
        self._head = Head("space-trained", "space-base", weight_DD, is_orthogonal)

    async def get_head(self, model: str) -> Head:
        if model != "trained":
            raise WrongState(f"model {model!r} is no head over a known base")
        return self._head


async def test_a_rotation_goes_both_ways() -> None:
    """There and back again are the same vectors, and no text is asked for."""
    translator = Translator(Heads(ROTATION_DD, True))
    there_BD = await translator.vectors(BASE, TRAINED, [], VECTORS_BD)
    np.testing.assert_allclose(there_BD, VECTORS_BD @ ROTATION_DD.T, atol=1e-6)
    back_BD = await translator.vectors(TRAINED, BASE, [], there_BD)
    np.testing.assert_allclose(back_BD, VECTORS_BD, atol=1e-6)


async def test_any_other_matrix_goes_there_only() -> None:
    """Its vectors are of unit length; the way back would be a guess, so it takes texts."""
    translator = Translator(Heads(DENSE_DD, False))
    there_BD = await translator.vectors(BASE, TRAINED, [], VECTORS_BD)
    np.testing.assert_allclose(there_BD, normalize(VECTORS_BD @ DENSE_DD.T), atol=1e-6)
    assert await translator.needs_texts(TRAINED, BASE)
    with pytest.raises(WrongState, match="'base', which needs texts"):
        await translator.vectors(TRAINED, BASE, [Point("a", "", {})], there_BD[:1])
