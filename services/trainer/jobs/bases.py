"""The models that jobs start from: where they are, and which methods suit them."""

from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.folder import DEFAULT_MODEL, locate
from services.shared.safety import check_folder, has_two_towers
from services.trainer.jobs.hyperparameters import PICTURE_METHODS, Method, Wanted
from services.trainer.results.layout import (
    full_width,
    has_network_for_each,
    network_weights,
    takes_pictures,
)


def locate_base(source: str, param: str = "base_model") -> Path:
    """Return a base model's folder; InvalidRequest if it is not safe, or none to train."""
    try:
        base = locate(source)
        check_folder(base)
    except InvalidRequest as error:
        raise InvalidRequest(f"{param}: {error.message}", param) from error
    if has_two_towers(base):
        raise InvalidRequest(
            f"{param} must have one tower for queries and documents; one with a tower for each "
            "can be served, not trained",
            param,
        )
    if has_network_for_each(base):
        raise InvalidRequest(
            f"{param} must read texts alone, or texts and pictures with one network, as the kind "
            "of Qwen3-VL does; one with a network for each, as CLIP, cannot be trained",
            param,
        )
    return base


def locate_teacher(source: str, full: int) -> str:
    """Return where the teacher is, as `where`; empty for none but the base."""
    if not source:
        return ""
    folder = locate_base(source, "hyperparameters.distillation.teacher")
    if (width := full_width(folder)) < full:
        raise InvalidRequest(
            f"hyperparameters.distillation.teacher must make vectors of at least {full} numbers, "
            f"as many as the base model's; it makes {width}",
            "hyperparameters.distillation.teacher",
        )
    return where(source, folder)


def where(source: str, folder: Path) -> str:
    """Return what a job's process finds a model by, which may run on another machine."""
    return source if source == DEFAULT_MODEL else str(folder)


def check_method(wanted: Wanted, base: Path) -> None:
    """Refuse LoRA where the model has no such layers."""
    if wanted.method != "lora":
        return
    known = network_weights(base)
    if not known:
        raise InvalidRequest("base_model must be a transformer for METHOD_LORA", "base_model")
    for target in wanted.lora.targets if wanted.lora else ():
        if not any(name.endswith(f".{target}.weight") for name in known):
            raise InvalidRequest(
                "hyperparameters.lora.targets must be last parts of the names of the model's "
                f"linear layers, for example 'query'; it has none called {target[:64]!r}",
                "hyperparameters.lora.targets",
            )


def refuse_pictures(method: Method, base: Path) -> str:
    """Return why no picture can be trained on; empty: they can."""
    if method not in PICTURE_METHODS:
        names = ", ".join(f"METHOD_{name.upper()}" for name in PICTURE_METHODS)
        return f"METHOD_{method.upper()} learns from texts alone; pictures are for {names}"
    if not takes_pictures(base):
        return "the base model reads texts alone; choose one that takes pictures, or leave them out"
    return ""
