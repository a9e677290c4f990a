"""What users attach to a job: pairs of strings.

Source: openai/openai-openapi, `Metadata`.
"""

from services.shared.errors import InvalidRequest

_MAX_PAIRS, _MAX_KEY_CHARS, _MAX_VALUE_CHARS = 16, 64, 512


def read_metadata(value: object) -> dict[str, str]:
    """Check metadata; None has none.

    Raises:
        InvalidRequest: one sentence that says what is accepted.
    """
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > _MAX_PAIRS
        or not all(map(_is_pair, value.items()))
    ):
        raise InvalidRequest(
            f"metadata must be an object of at most {_MAX_PAIRS} pairs, with keys of 1 to "
            f"{_MAX_KEY_CHARS} characters and strings of at most {_MAX_VALUE_CHARS}, without null "
            "characters",
            "metadata",
        )
    return value


def _is_pair(pair: tuple[object, object]) -> bool:
    key, value = pair
    return (
        isinstance(key, str)
        and isinstance(value, str)
        and 1 <= len(key) <= _MAX_KEY_CHARS
        and len(value) <= _MAX_VALUE_CHARS
        and all(map(_is_text, pair))
    )


def _is_text(text: object) -> bool:
    # What a database can keep.
    shown = str(text)
    return "\0" not in shown and shown == shown.encode(errors="replace").decode()
