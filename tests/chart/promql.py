"""What PromQL expressions name: metrics, the labels that each is asked by, and the values."""

import re

_SELECTOR = re.compile(r"\b(matryoshka_[a-z0-9_]+|matryoshka:[a-z0-9_:]+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """Return (metric, {label: value}) of each selector; values may hold no brace."""
    found = _SELECTOR.findall(_without_braces(expression))
    return [(metric, dict(_MATCHER.findall(inner))) for metric, inner in found]


def groupings(expression: str) -> set[str]:
    """Return the labels that results are grouped by."""
    inner = ",".join(_GROUPING.findall(expression))
    return {label.strip() for label in inner.split(",") if label.strip()}


def _without_braces(expression: str) -> str:
    """Take braces out of values: routes have them, `/v1/vector_stores/{vector_store_id}`."""
    return re.sub(r'"[^"]*"', lambda text: re.sub(r"[{}]", "", text[0]), expression)
