"""Pictures among the examples: checked, kept once each, known by the digest of their content.

In: a value of a row: `{"image": "<base64 or data URL>"}`, a data URL by itself, bytes, or what
Hugging Face's `datasets` makes of a picture, `{"bytes": ..., "path": ...}`. Out: a file in the
job's folder. A path leads into the source's own folder or is refused; nothing is ever fetched.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from services.shared.errors import InvalidRequest
from services.shared.images import decode, from_base64

PICTURES = "pictures"
"""The folder in a job's folder that keeps them."""
_KEYS = frozenset(("image", "bytes", "path"))


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture; equal to one of the same bytes."""

    digest: str
    """sha256 of its file, as 64 hexadecimal digits."""
    path: Path = field(compare=False)
    """Its file."""

    def __str__(self) -> str:
        return f"picture {self.digest}"


Item = str | Picture
"""What is asked or found: a text, or a picture where the base model takes them."""


class WrongPictureError(Exception):
    """What is wrong with a picture, to follow the name of its field."""


class Pictures:
    """Keeps the pictures of a job.

    Args:
        folder: made with the first one.
        max_bytes: of all their files.
        refusal: why none is taken; empty: they are.
    """

    def __init__(self, folder: Path, max_bytes: int, refusal: str = "") -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._refusal = refusal
        self._kept: set[str] = set()
        self._num_bytes = 0

    def keep(self, value: object, beside: Path, within: Path | None) -> Picture:
        """Check a picture and keep its file.

        Args:
            value: see above.
            beside: the folder of the file that has the row: where its paths begin.
            within: the resolved folder that they may not leave; None: no path is taken.

        Raises:
            WrongPictureError: it is none, or cannot be read.
            InvalidRequest: none is taken, or they are too large together.
        """
        if self._refusal:
            raise InvalidRequest(self._refusal)
        data = self._read(value, beside, within)
        digest = hashlib.sha256(data).hexdigest()
        picture = Picture(digest, self._folder / digest)
        if digest in self._kept:
            return picture
        try:
            decode(data)
        except InvalidRequest as error:
            raise WrongPictureError(f"is no picture that can be read: {error.message}") from error
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise self._too_large()
        self._folder.mkdir(exist_ok=True)
        picture.path.write_bytes(data)
        self._kept.add(digest)
        return picture

    def _read(self, value: object, beside: Path, within: Path | None) -> bytes:
        if isinstance(value, dict):
            found = next((value[k] for k in ("image", "bytes") if value.get(k) is not None), None)
            path = value.get("path")
            if found is None and isinstance(path, str):
                return self._read_file(path, beside, within)
            value = found
        if isinstance(value, bytes):
            return value
        try:
            return from_base64(value if isinstance(value, str) else "")
        except ValueError as error:
            raise WrongPictureError(
                'is neither a text nor a picture; a picture is {"image": "<base64 or data URL>"}'
            ) from error

    def _read_file(self, name: str, beside: Path, within: Path | None) -> bytes:
        try:
            path = (beside / name).resolve(strict=True)
            if within is None or not path.is_relative_to(within) or not path.is_file():
                raise FileNotFoundError
            if path.stat().st_size > self._max_bytes:
                raise self._too_large()
            return path.read_bytes()
        except (OSError, ValueError) as error:
            raise WrongPictureError(
                "is the path of a picture that is not in the folder of the data; send its bytes"
            ) from error

    def _too_large(self) -> InvalidRequest:
        return InvalidRequest(f"pictures must have at most {self._max_bytes} bytes together")


def is_picture(value: object) -> bool:
    """Say whether a value of a row is a picture, or wants to be one."""
    if isinstance(value, dict):
        return not _KEYS.isdisjoint(value)
    return isinstance(value, bytes) or (isinstance(value, str) and value.startswith("data:image/"))


def as_json(picture: object) -> dict[str, str]:
    """Return a picture as JSON has it among texts; for `json.dumps`, which asks about no other."""
    if not isinstance(picture, Picture):
        raise TypeError(f"{type(picture).__name__} is not JSON")
    return {"image": picture.digest}
