"""matryoshka.json: what a model promises at each size. Written by the trainer, read by the encoder.

It lies in the model folder beside the Sentence Transformers files. The file is the only place
where the trained sizes are kept; nothing configures them a second time.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from services.shared.errors import InvalidRequest
from services.shared.vectors import Array, PreOp

FILENAME = "matryoshka.json"
# A list of numbers as JSON's indentation writes it; a string cannot hold a raw line break.
_NUMBERS = re.compile(r"\[\n[-+.\deE,\s]*\]")


class _SizeScores(BaseModel):
    """What was measured at one size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    NAMES: ClassVar[Mapping[str, str]]
    """The scores and what people call them, the one that decides first."""
    COUNTED: ClassVar[str]
    """What the scores are of, for people."""

    dim: int = Field(ge=1)

    @property
    def values(self) -> dict[str, float]:
        """Each score, the one that decides first."""
        return {name: getattr(self, name) for name in self.NAMES}

    @property
    def score(self) -> float:
        """The one that decides: whether a model is better, and what a size keeps."""
        return next(iter(self.values.values()))

    @property
    def metric(self) -> str:
        """What people call it."""
        return next(iter(self.NAMES.values()))


class DimScores(_SizeScores):
    """Retrieval quality at one size, each score 0..1."""

    NAMES = {"ndcg10": "nDCG@10", "recall10": "recall@10", "mrr10": "MRR@10"}
    COUNTED = "queries"

    ndcg10: float = Field(ge=0, le=1)
    recall10: float = Field(ge=0, le=1)
    mrr10: float = Field(ge=0, le=1)


class SimilarityScores(_SizeScores):
    """How the cosines of pairs at one size go with their scores: correlations, -1..1."""

    NAMES = {"spearman": "Spearman", "pearson": "Pearson"}
    COUNTED = "pairs"

    spearman: float = Field(ge=-1, le=1)
    pearson: float = Field(ge=-1, le=1)


AnyScores = DimScores | SimilarityScores


class Quality(BaseModel):
    """What was measured, on which data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    """Name and kind of the data, for people."""
    num_queries: int = Field(ge=1)
    """Or scored pairs."""
    num_documents: int = Field(ge=1)
    """Or texts that the first ones of scored pairs are compared with."""
    before: tuple[AnyScores, ...]
    """The base model."""
    after: tuple[AnyScores, ...]
    """This model; of the same kind."""
    judged_by: Literal["labels", "neighbours"] = "labels"
    """What a right answer is: a labelled pair, or what the full size itself ranks first."""

    @property
    def metric(self) -> str:
        """What people call the score that decides."""
        return self.after[0].metric

    @property
    def counts(self) -> str:
        """How much it was measured on, for people."""
        if isinstance(self.after[0], SimilarityScores):
            return f"{self.num_queries:,} held-out pairs"
        return f"{self.num_queries:,} held-out queries against {self.num_documents:,} documents"


class DimRanges(BaseModel):
    """Range of each number of the vectors of one size, cut and of unit length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(ge=1)
    low: tuple[FiniteFloat, ...]
    high: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        if not len(self.low) == len(self.high) == self.dim:
            raise ValueError(f"low and high must hold {self.dim} numbers each")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low must not be above high")
        return self


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
    base_space_id: str | None = Field(default=None, min_length=1)
    """Space of the model that this one differs from by its head only; absent where there is none:
    served full vectors of that space, turned by the head and scaled to unit length, are this
    model's."""
    quality: Quality | None = None
    int8_ranges: tuple[DimRanges, ...] = ()
    """What int8 and uint8 vectors of each size are stored by."""

    @cached_property
    def ranges(self) -> dict[int, Array]:
        """`int8_ranges` by size, as ranges_2M: low and high of each number."""
        return {r.dim: np.array([r.low, r.high], dtype=np.float32) for r in self.int8_ranges}

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
    """Write the card into a folder, in one step."""
    # Readers from before this field refuse the key, so it is there only where it says something.
    left_out = {"base_space_id"} if card.base_space_id is None else None
    content = card.model_dump_json(indent=2, exclude=left_out)
    text = _NUMBERS.sub(lambda found: "".join(found[0].split()), content)
    temporary = folder / f"{FILENAME}.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / FILENAME)


def describe_ranges(ranges: Mapping[int, Array]) -> tuple[DimRanges, ...]:
    """Turn ranges_2M by size into what the card holds.

    Seven digits: more than the ranges are worth, and the same float32 on every reading.
    """
    return tuple(
        DimRanges(
            dim=dim,
            low=tuple(float(f"{number:.7g}") for number in low_M),
            high=tuple(float(f"{number:.7g}") for number in high_M),
        )
        for dim, (low_M, high_M) in ranges.items()
    )
