"""matryoshka.json: what a model promises at each size. Written by the trainer, read by the encoder.

It lies in the model folder beside the Sentence Transformers files. The file is the only place
where the trained sizes are kept; nothing configures them a second time.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.shared.errors import InvalidRequest
from services.shared.vectors import PreOp

FILENAME = "matryoshka.json"


class DimScores(BaseModel):
    """Retrieval quality at one size, each score 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=1)
    ndcg10: float = Field(ge=0, le=1)
    recall10: float = Field(ge=0, le=1)
    mrr10: float = Field(ge=0, le=1)


class Quality(BaseModel):
    """What was measured, on which data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    """Name and kind of the data, for people."""
    num_queries: int = Field(ge=1)
    num_documents: int = Field(ge=1)
    before: tuple[DimScores, ...]
    """The base model."""
    after: tuple[DimScores, ...]
    """This model."""


class Card(BaseModel):
    """The content of matryoshka.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    id: str = Field(min_length=1)
    """Immutable name of the model, for example `ft:all-MiniLM-L6-v2:docs:9f2c`."""
    dims: tuple[int, ...] = Field(min_length=1)
    """Sizes the model is trained for, ascending; the last is the full one."""
    pre_op: PreOp = "none"
    """What happens to a full vector before it is cut."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Text put before a `query` or a `document`."""
    base_model: str | None = None
    data_digest: str | None = None
    """sha256 of the training pairs."""
    space_id: str
    """Digest of weights and recipe; checked when the model is loaded."""
    quality: Quality | None = None

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        if list(self.dims) != sorted(set(self.dims)) or self.dims[0] < 1:
            raise ValueError(f"dims must be positive and strictly ascending, got {self.dims}")
        return self


def read_card(folder: Path) -> Card | None:
    """Read a folder's card; None if it has none.

    Raises:
        InvalidRequest: the file is there but wrong; the message says where.
    """
    path = folder / FILENAME
    if not path.exists():
        return None
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest(f"{FILENAME}: {where}: {first['msg']}") from error


def write_card(folder: Path, card: Card) -> None:
    """Write the card into a folder that is not served yet."""
    (folder / FILENAME).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
