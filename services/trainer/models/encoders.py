"""All encoders: those that are there, told by calls, and those that start later, told by a file."""

import asyncio
from collections import Counter
from pathlib import Path

from services.trainer.models.encoder_client import EncoderClient
from services.trainer.models.served import ServedModels


class Encoders:
    """What a promotion does to encoders. Everything may be done twice.

    Args:
        client: calls those that are there.
        served: tells those that start later.
    """

    def __init__(self, client: EncoderClient, served: ServedModels) -> None:
        self._client = client
        self._served = served

    async def models_of(self, name: str) -> list[str]:
        """Return the models that a name points at: one, unless encoders have come apart.

        Then what most of them serve comes first. None: nothing is called so anywhere.
        """
        found = Counter(await self._client.models_of(name))
        return [model for model, _ in found.most_common() if model]

    async def load(self, folder: Path, model_id: str, space_id: str) -> None:
        """Have a model loaded by all; see `EncoderClient.load`."""
        await self._client.load(str(folder), model_id, space_id)
        await asyncio.to_thread(self._served.add, model_id, folder)
        # One that came meanwhile, before it could be told by the file.
        await self._client.load(str(folder), model_id, space_id)

    async def unload(self, model_id: str) -> None:
        """Have it served by none, unless a name points at it."""
        await asyncio.to_thread(self._served.remove, model_id)
        await self._client.unload(model_id)

    async def point(self, alias: str, model_id: str) -> None:
        """Point a name at a loaded model."""
        await asyncio.to_thread(self._served.point, alias, model_id)
        await self._client.set_alias(alias, model_id)

    async def points_at(self, alias: str, model_id: str) -> bool:
        """Whether a name points at a model anywhere, or shall do so."""
        told = await asyncio.to_thread(self._served.named, alias)
        return told == model_id or model_id in await self._client.models_of(alias)
