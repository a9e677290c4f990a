"""Vectors of another space for points that are there: transformed if that can be, or encoded anew.

A model that differs from another one only by its head turns full vectors of that one into its own.
An orthogonal head works in both directions, so that a collection can go back without a text, too.

Shapes: B points, D full width.
"""

from collections.abc import Sequence

from services.router.encoder_client import EncoderClient, Head
from services.router.space import check_space
from services.router.storage.store import Collection, Point
from services.shared.errors import ServiceError, WrongState
from services.shared.vectors import Array, normalize


class Translator:
    """Makes vectors for another collection.

    Args:
        encoder: knows heads, and encodes.
    """

    def __init__(self, encoder: EncoderClient) -> None:
        self._encoder = encoder
        # By model; it never changes its head. None: it has none that is known.
        self._heads: dict[str, Head | None] = {}

    async def needs_texts(self, source: Collection, target: Collection) -> bool:
        """Say whether vectors of one space can only be had from texts."""
        return source.space_id != target.space_id and await self._matrix(source, target) is None

    async def vectors(
        self, source: Collection, target: Collection, points: Sequence[Point], vectors_BD: Array
    ) -> Array:
        """Return the points' full vectors in the target's space.

        Args:
            source: where the points are.
            target: where they shall be, too.
            points: with their texts.
            vectors_BD: the points' full vectors in the source's space.

        Raises:
            WrongState: a point has no text, and without it there is no vector.
            NotFound, Unavailable, Overloaded: see `EncoderClient.embed_many`.
        """
        if source.space_id == target.space_id:
            return vectors_BD
        matrix_DD = await self._matrix(source, target)
        if matrix_DD is not None:
            return normalize(vectors_BD @ matrix_DD)
        if not all(point.text.strip() for point in points):
            raise WrongState(
                f"collection {source.name!r} is being migrated to the model {target.model!r}, "
                "which needs texts; write its points with their texts"
            )
        encoded = await self._encoder.embed_many(target.model, [point.text for point in points])
        check_space(target, encoded.space_id, f"the encoder's model {target.model!r}")
        return encoded.vectors_BD

    async def _matrix(self, source: Collection, target: Collection) -> Array | None:
        """Return what turns the source's vectors into the target's, `vectors @ matrix`."""
        head = await self._head(target.model)
        if head is not None and (head.base_space_id, head.space_id) == _spaces(source, target):
            return head.weight_DD.T
        back = await self._head(source.model)
        is_back = back is not None and (back.base_space_id, back.space_id) == _spaces(
            target, source
        )
        return back.weight_DD if back is not None and is_back and back.is_orthogonal else None

    async def _head(self, model: str) -> Head | None:
        if model not in self._heads:
            try:
                self._heads[model] = await self._encoder.get_head(model)
            except WrongState:
                self._heads[model] = None
            except ServiceError:
                return None  # it may be there the next time
        return self._heads[model]


def _spaces(source: Collection, target: Collection) -> tuple[str, str]:
    return source.space_id, target.space_id
