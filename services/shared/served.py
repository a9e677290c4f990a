"""What promotions have made every encoder serve: the trainer writes this file, encoders follow it.

An encoder that starts later, or was away, finds there what the others were told by a call.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

FILENAME = "served.json"


class ServedError(Exception):
    """The file cannot be read; the message says why."""


class Served(BaseModel):
    """Models and names beside an encoder's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, str] = {}
    """Folders by id."""
    aliases: dict[str, str] = {}
    """Ids of models by the names that point at them."""


def read_served(path: Path) -> Served:
    """Return what stands in the file; nothing, if there is none.

    Raises:
        ServedError: it holds something else.
    """
    try:
        return Served.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Served()
    except (OSError, ValidationError) as error:
        raise ServedError(f"{path} cannot be read: {error}") from error


def write_served(path: Path, served: Served) -> None:
    """Replace the file in one step: whoever reads it sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(served.model_dump_json(indent=2))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
