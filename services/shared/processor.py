"""The processor of a model that takes pictures, on a machine without torchvision.

transformers prepares videos with torchvision only, and will not load a processor for text and
pictures where that part is missing; sentence-transformers will not either. Nothing here takes
videos. So the same processor is put together without that part: transformers' own tokenizer and
its own preparation of pictures with Pillow.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Qwen3VLConfig
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available

_FILES = ("preprocessor_config.json", "processor_config.json")


class StillProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor for texts and pictures.

    Its parts are read from the names of the arguments, so there is none for videos.
    """

    def __init__(
        self,
        image_processor: Any = None,  # noqa: ANN401 (as transformers')
        tokenizer: Any = None,  # noqa: ANN401
        chat_template: str | None = None,
        **_: object,
    ) -> None:
        ProcessorMixin.__init__(  # type: ignore[no-untyped-call]
            self, image_processor, tokenizer, chat_template=chat_template
        )
        for name in ("image", "video", "vision_start", "vision_end"):
            token = f"<|{name}_pad|>" if name in {"image", "video"} else f"<|{name}|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))


@contextmanager
def processor_folder(folder: Path) -> Iterator[Path | None]:
    """Yield the folder that a model's processor can be loaded from; None for its own."""
    is_qwen = any(
        "Qwen3VLProcessor" in (folder / name).read_text(encoding="utf-8")
        for name in _FILES
        if (folder / name).is_file()
    )
    if not is_qwen or is_torchvision_available():
        yield None
        return
    # By its name in the files below, transformers finds a class that was registered.
    AutoProcessor.register(Qwen3VLConfig, StillProcessor, exist_ok=True)  # type: ignore[no-untyped-call]
    template = folder / "chat_template.jinja"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    images: Any = AutoImageProcessor
    with tempfile.TemporaryDirectory() as temporary:
        StillProcessor(
            images.from_pretrained(folder, local_files_only=True),
            tokenizer,
            chat_template=template.read_text(encoding="utf-8")
            if template.is_file()
            else tokenizer.chat_template,
        ).save_pretrained(temporary)
        yield Path(temporary)
