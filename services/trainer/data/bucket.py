"""Files from a bucket, bounded in size and time, with the service's own access to it.

Which bucket is the operator's decision (the list), and so is the server: s3fs takes the address of
the object store and the keys from the environment of the service, as every program of AWS does.
"""

import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from services.shared.errors import InvalidRequest, ServiceError, TooSlow
from services.trainer.data.allowed import Address
from services.trainer.data.download import too_large

_PIECE_BYTES = 2**20
_MAX_FILES = 10_000
_DEPTH = 2  # a folder, and the folders in it


def open_s3() -> Any:  # noqa: ANN401 (fsspec ships no types)
    """Open the object store; ImportError without s3fs."""
    return fsspec.filesystem(
        "s3",
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 2}},
    )


class Buckets:
    """Fetches files of buckets.

    Args:
        max_bytes: of one file, or of all files of a folder.
        timeout_s: for all of them.
        open_store: gives the object store, as fsspec has it.
    """

    def __init__(
        self, max_bytes: int, timeout_s: float, open_store: Callable[[], Any] = open_s3
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._open_store = open_store

    def fetch(self, address: Address, target: Path, param: str) -> None:
        """Fetch a file to `target`; of an address that ends in a slash, all files below it.

        Raises:
            TooLarge: more bytes than `max_bytes`.
            TooSlow: it took longer than `timeout_s`.
            InvalidRequest: there is no such file, or the store refuses it or is out of reach.
        """
        deadline_s = time.monotonic() + self._timeout_s
        try:
            store = self._open_store()
            if not address.path.endswith("/"):
                self._copy(store, f"{address.host}{address.path}", target, deadline_s, 0, param)
                return
            root = f"{address.host}{address.path}".rstrip("/")
            paths = store.find(root, maxdepth=_DEPTH)
            if len(paths) > _MAX_FILES:
                raise InvalidRequest(f"{param}: the folder has over {_MAX_FILES} files", param)
            num_bytes = 0
            for path in paths:
                name = PurePosixPath(path.lstrip("/")).relative_to(root)
                if ".." in name.parts:
                    continue
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                num_bytes = self._copy(store, path, target / name, deadline_s, num_bytes, param)
        except ImportError as error:
            raise InvalidRequest(
                f"{param}: this trainer reads no buckets; its operator can install s3fs", param
            ) from error
        except ServiceError:
            raise
        except Exception as error:  # botocore's have no base that fsspec knows
            raise InvalidRequest(
                f"{param}: the bucket has no such file, or it cannot be read "
                f"({type(error).__name__})",
                param,
            ) from error

    def _copy(
        self,
        store: Any,  # noqa: ANN401
        path: str,
        target: Path,
        deadline_s: float,
        num_bytes: int,
        param: str,
    ) -> int:
        """Copy a file; return the bytes so far."""
        info = store.info(path)
        if info["type"] != "file":
            raise FileNotFoundError
        if num_bytes + int(info["size"]) > self._max_bytes:
            raise too_large(param, self._max_bytes)
        with store.open(path, "rb") as source, target.open("wb") as file:
            while piece := source.read(_PIECE_BYTES):
                num_bytes += len(piece)
                if num_bytes > self._max_bytes:
                    raise too_large(param, self._max_bytes)
                if time.monotonic() > deadline_s:
                    raise TooSlow(
                        f"{param}: the bucket must give the data within {self._timeout_s:g} s",
                        param,
                    )
                file.write(piece)
        return num_bytes
