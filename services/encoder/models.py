"""The models that are served: load, name, unload, while requests go on.

What is loaded and which names point where survives a restart, in `models.json`: a collection
built in a model's space must find that model again.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from services.encoder.batcher import Batcher
from services.encoder.metrics import EncoderMetrics
from services.encoder.settings import EncoderSettings
from services.shared.errors import AlreadyExists, InvalidRequest, ModelNotFound, WrongState
from services.shared.folder import default_id, locate
from services.shared.model import TextModel
from services.shared.packing import Tokens
from services.shared.vectors import Array

log = logging.getLogger(__name__)

DEFAULT_ALIAS = "default"
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and the batcher that feeds it."""

    id: str
    source: str
    text_model: TextModel
    batcher: Batcher
    loaded_at: float


class Models:
    """All loaded models and their aliases.

    Args:
        settings: where to keep `models.json`, how to load, and the batchers' bounds.
        metrics: shared by all batchers.
    """

    def __init__(self, settings: EncoderSettings, metrics: EncoderMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._path = settings.data_dir / "models.json"
        self._loaded: dict[str, LoadedModel] = {}
        self._aliases: dict[str, str] = {}
        self._changing = asyncio.Lock()
        # One forward pass at a time: it uses every core or the whole accelerator by itself.
        self._forward_thread = ThreadPoolExecutor(1, thread_name_prefix="forward")

    async def start(self) -> None:
        """Load what was loaded before, and the model that the settings name.

        Raises:
            InvalidRequest: one of them cannot be loaded.
        """
        saved = json.loads(self._path.read_text()) if self._path.exists() else {}
        for entry in saved.get("models", []):
            await self._load(entry["source"], entry["id"])
        default = await self._load(self._settings.model, "")
        self._aliases = {DEFAULT_ALIAS: default.id, **saved.get("aliases", {})}
        await asyncio.to_thread(self._save)

    async def load(self, source: str, model_id: str) -> LoadedModel:
        """Load a model; the same one again is harmless.

        Raises:
            InvalidRequest: it cannot be loaded.
            AlreadyExists: another model is loaded under that id.
        """
        if not source:
            raise InvalidRequest("source must be a model folder or a hub id", "source")
        async with self._changing:
            model = await self._load(source, model_id)
            await asyncio.to_thread(self._save)
            return model

    async def unload(self, model_id: str) -> None:
        """Stop serving a model and free it.

        Raises:
            ModelNotFound: no such id.
            WrongState: an alias still points at it.
        """
        async with self._changing:
            model = self._loaded.get(model_id)
            if model is None:
                raise self._not_found(model_id)
            aliases = self.aliases_of(model_id)
            if aliases:
                raise WrongState(
                    f"model {model_id!r} is what {', '.join(aliases)} points at; "
                    "point that at another model first"
                )
            del self._loaded[model_id]
            await asyncio.to_thread(self._save)
            await model.batcher.close()

    async def set_alias(self, alias: str, model_id: str) -> None:
        """Point a name at a loaded model.

        Raises:
            ModelNotFound: no such id.
            InvalidRequest: the alias is empty, too long, or the id of a model.
        """
        if not 1 <= len(alias) <= _MAX_NAME:
            raise InvalidRequest(f"alias must have 1 to {_MAX_NAME} characters", "alias")
        if alias in self._loaded:
            raise InvalidRequest(f"{alias!r} is the id of a loaded model", "alias")
        async with self._changing:
            if model_id not in self._loaded:
                raise self._not_found(model_id)
            self._aliases[alias] = model_id
            await asyncio.to_thread(self._save)

    def get(self, name: str) -> LoadedModel:
        """Find a model by id or alias; the empty name is the default's.

        Raises:
            ModelNotFound: neither; the message lists what is there.
        """
        name = name or DEFAULT_ALIAS
        model = self._loaded.get(self._aliases.get(name, name))
        if model is None:
            raise self._not_found(name)
        return model

    def list(self) -> list[LoadedModel]:
        return list(self._loaded.values())

    def aliases_of(self, model_id: str) -> Sequence[str]:
        return sorted(alias for alias, target in self._aliases.items() if target == model_id)

    async def close(self) -> None:
        for model in self._loaded.values():
            await model.batcher.close()
        self._forward_thread.shutdown()

    async def _load(self, source: str, model_id: str) -> LoadedModel:
        text_model = await asyncio.to_thread(self._read, source)
        card_id = text_model.card.id if text_model.card else ""
        model_id = model_id or card_id or default_id(text_model.folder, source)
        if len(model_id) > _MAX_NAME:
            raise InvalidRequest(f"id must have at most {_MAX_NAME} characters", "id")
        present = self._loaded.get(model_id)
        if present and present.text_model.space_id == text_model.space_id:
            return present
        if present or model_id in self._aliases:
            raise AlreadyExists(f"{model_id!r} names another model; unload it or give another id")

        async def run(batch: Sequence[Tokens]) -> Array:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._forward_thread, text_model.encode, batch)

        model = LoadedModel(
            model_id,
            source,
            text_model,
            Batcher(
                run,
                text_model.full,
                self._settings.max_batch_tokens,
                self._settings.max_queued_tokens,
                self._metrics,
            ),
            time.time(),
        )
        self._loaded[model_id] = model
        self._metrics.models.set(len(self._loaded))
        log.info(
            "loaded %s: %s, %d dimensions, space %s",
            model_id, text_model.engine, text_model.full, text_model.space_id,
        )  # fmt: skip
        return model

    def _read(self, source: str) -> TextModel:
        return TextModel(locate(source), self._settings.precision, self._settings.device)

    def _not_found(self, name: str) -> ModelNotFound:
        names = ", ".join(sorted({*self._loaded, *self._aliases}))
        return ModelNotFound(
            f"model {name[:_MAX_NAME]!r} is not loaded; there are: {names}", "model"
        )

    def _save(self) -> None:
        """Replace `models.json` in one step: a crash leaves the old one or the new one."""
        self._metrics.models.set(len(self._loaded))
        content = {
            "models": [{"id": m.id, "source": str(_absolute(m.source))} for m in self.list()],
            "aliases": self._aliases,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _absolute(source: str) -> str | Path:
    """A relative folder must mean the same after a restart from elsewhere."""
    folder = Path(source).expanduser()
    return folder.resolve() if folder.is_dir() else source
