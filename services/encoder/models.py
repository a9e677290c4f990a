"""The models that are served: load, name, unload, while requests go on.

What is loaded and which names point where survives a restart, in `models.json`: a collection
built in a model's space must find that model again.
"""

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from services.encoder.flops import measure_peak
from services.encoder.loaded import (
    LoadedCrossEncoder,
    LoadedEmbedder,
    LoadedModel,
    log_loaded,
    serve,
    warm_up_tokens,
    what_it_gives,
)
from services.encoder.memory import check_fits, weight_bytes
from services.encoder.metrics import EncoderMetrics
from services.encoder.settings import EncoderSettings
from services.encoder.turns import ForwardThread
from services.shared.cross_encoder import CrossEncoder
from services.shared.cross_encoder_folder import is_cross_encoder
from services.shared.errors import (
    AlreadyExists,
    InvalidRequest,
    ModelNotFound,
    WrongState,
)
from services.shared.folder import default_id, locate
from services.shared.model import TextModel

log = logging.getLogger(__name__)

DEFAULT_ALIAS = "default"
_MAX_NAME = 256
# A model that is loaded while others serve gets what they leave of the processor.
_LOADING_NICENESS = 10


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
        self._forward = ForwardThread(settings.bulk_share)

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
            # Nobody can find it any more; those who already had are answered.
            await model.batcher.drain(self._settings.grace_s)
            self._close(model)

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
            log.info("alias %s points at %s", alias, model_id)

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

    def embedder(self, name: str) -> LoadedEmbedder:
        """Find a model that makes vectors.

        Raises:
            ModelNotFound: as `get`.
            InvalidRequest: it is a cross-encoder.
        """
        model = self.get(name)
        if not isinstance(model, LoadedEmbedder):
            raise InvalidRequest(
                f"model {model.id!r} is a cross-encoder: it scores a query with documents (Rerank, "
                f"POST /v1/rerank) and makes no vectors; {self._there_are(LoadedEmbedder)}",
                "model",
            )
        return model

    def cross_encoder(self, name: str) -> LoadedCrossEncoder:
        """Find a model that scores pairs.

        Raises:
            ModelNotFound: as `get`.
            InvalidRequest: it makes vectors.
        """
        model = self.get(name)
        if not isinstance(model, LoadedCrossEncoder):
            raise InvalidRequest(
                f"model {model.id!r} makes vectors of single texts and scores no pairs; name a "
                f"cross-encoder, {self._there_are(LoadedCrossEncoder)}",
                "model",
            )
        return model

    def list(self) -> list[LoadedModel]:
        return list(self._loaded.values())

    def aliases_of(self, model_id: str) -> Sequence[str]:
        return sorted(alias for alias, target in self._aliases.items() if target == model_id)

    async def close(self) -> None:
        for model in self._loaded.values():
            self._close(model)
        await self._forward.close()

    async def _load(self, source: str, model_id: str) -> LoadedModel:
        with ThreadPoolExecutor(1, "load", self._be_nice) as thread:
            loop = asyncio.get_running_loop()
            folder = await loop.run_in_executor(thread, locate, source)
            await loop.run_in_executor(thread, self._check_memory, folder, source)
            text_model = await loop.run_in_executor(thread, self._read, folder)
            peak = await loop.run_in_executor(thread, measure_peak, text_model)
        model_id = model_id or _card_id(text_model) or default_id(text_model.folder, source)
        if len(model_id) > _MAX_NAME:
            raise InvalidRequest(f"id must have at most {_MAX_NAME} characters", "id")
        present = self._loaded.get(model_id)
        if present and present.text_model.space_id == text_model.space_id:
            return self._renew_card(present, source, text_model)
        if present or model_id in self._aliases:
            raise AlreadyExists(f"{model_id!r} names another model; unload it or give another id")
        model = serve(
            model_id, source, text_model, peak, self._forward.ready, self._settings, self._metrics
        )
        self._forward.add(model.batcher)
        # In the bulk lane: whoever is served already does not wait for it.
        await model.batcher.encode(warm_up_tokens(text_model), "bulk")
        self._loaded[model_id] = model
        self._show()
        log_loaded(model)
        return model

    def _renew_card(
        self, present: LoadedModel, source: str, newer: TextModel | CrossEncoder
    ) -> LoadedModel:
        """Take the newer card of a model that is served: it may have been measured since."""
        present.text_model.folder = newer.folder
        if isinstance(present.text_model, TextModel) and isinstance(newer, TextModel):
            present.text_model.card = newer.card
        log.info(
            "%s takes what %s says of it: %s", present.id, source, what_it_gives(present.text_model)
        )
        renewed = self._loaded[present.id] = replace(present, source=source)
        return renewed

    def _close(self, model: LoadedModel) -> None:
        self._forward.remove(model.batcher)
        model.close()
        self._show()

    def _be_nice(self) -> None:
        """Take the loading thread, and the threads that torch starts for it, behind serving."""
        if self._loaded and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICENESS)

    def _check_memory(self, folder: Path, source: str) -> None:
        if any(model.text_model.folder == folder for model in self.list()):
            return  # the same again is harmless: it is read, compared and dropped
        held = sum(model.memory_bytes for model in self.list())
        check_fits(source, weight_bytes(folder), held, self._settings.max_model_bytes)

    def _show(self) -> None:
        self._metrics.models.set(len(self._loaded))
        self._metrics.model_bytes.set(sum(m.memory_bytes for m in self._loaded.values()))

    def _read(self, folder: Path) -> TextModel | CrossEncoder:
        kind = CrossEncoder if is_cross_encoder(folder) else TextModel
        return kind(
            folder,
            self._settings.precision,
            self._settings.device,
            self._settings.engines_dir or self._settings.data_dir / "engines",
        )

    def _there_are(self, kind: type[LoadedModel]) -> str:
        names = sorted(model.id for model in self.list() if isinstance(model, kind))
        return f"there are: {', '.join(names)}" if names else "none is loaded"

    def _not_found(self, name: str) -> ModelNotFound:
        names = ", ".join(sorted({*self._loaded, *self._aliases}))
        return ModelNotFound(
            f"model {name[:_MAX_NAME]!r} is not loaded; there are: {names}", "model"
        )

    def _save(self) -> None:
        """Replace `models.json` in one step: a crash leaves the old one or the new one."""
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


def _card_id(text_model: TextModel | CrossEncoder) -> str:
    card = text_model.card if isinstance(text_model, TextModel) else None
    return card.id if card else ""


def _absolute(source: str) -> str | Path:
    """A relative folder must mean the same after a restart from elsewhere."""
    folder = Path(source).expanduser()
    return folder.resolve() if folder.is_dir() else source
