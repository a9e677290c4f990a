"""OpenAI's lists: a page of a long list, and what a caller may say about which.

Source: openai/openai-openapi, the parameters `after`, `before`, `limit` and `order`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from services.shared.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page."""

    limit: int
    order: Literal["asc", "desc"] = "desc"
    """By the time of creation."""
    after: str = ""
    """The page begins behind the object with this id."""
    before: str = ""
    """The page ends before the object with this id."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, in the wanted order."""

    items: list[T]
    has_more: bool


def read_paging(
    query: Mapping[str, str],
    max_limit: int = 100,
    default_limit: int = 20,
    others: Sequence[str] = (),
) -> Paging:
    """Read a list's query parameters.

    Args:
        query: as they came.
        max_limit: most objects of one page.
        default_limit: objects of a page when nothing is said.
        others: parameters that the list takes beside those of every list.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    known = ("after", "before", "limit", "order", *others)
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"unknown query parameter {name[:64]!r}; there are: {', '.join(known)}", name[:64]
            )
    limit = query.get("limit", str(default_limit))
    if not (
        limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= max_limit
    ):
        raise InvalidRequest(f"limit must be an integer from 1 to {max_limit}", "limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be 'asc' or 'desc'", "order")
    direction: Literal["asc", "desc"] = "asc" if order == "asc" else "desc"
    return Paging(int(limit), direction, query.get("after", ""), query.get("before", ""))


def write_page(data: list[dict[str, object]], has_more: bool) -> dict[str, object]:
    """Write a list in OpenAI's shape."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
