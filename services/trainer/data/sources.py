"""Where training data comes from: an uploaded file, a path, a web server, a bucket.

`file-...` is an uploaded file. Everything else is read only where the operator's list says so:
`/data/set`, a file or a folder; `https://host/set.jsonl`; `s3://bucket/set.parquet`, or with a
slash at its end all files below it.
"""

from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from services.shared.errors import InvalidRequest, PermissionDenied
from services.shared.files import Files
from services.trainer.data.allowed import Address, read_address, read_list
from services.trainer.data.bucket import Buckets
from services.trainer.data.dataset import SourceFile
from services.trainer.data.download import Downloads, too_large
from services.trainer.data.folder import list_folder
from services.trainer.settings import TrainerSettings

_MAX_CHARS = 4096


def is_upload(reference: str) -> bool:
    """Say whether a source is an uploaded file, as those of tenants must be."""
    return not reference.startswith("/") and "://" not in reference


def without_query(reference: str) -> str:
    """Return a source as it may be shown: a query may hold a signature."""
    return reference.partition("?")[0] if "://" in reference else reference


class Sources:
    """Finds the files of a source.

    Args:
        files: those that were uploaded.
        settings: what else may be read, and how much of it.
    """

    def __init__(self, files: Files, settings: TrainerSettings) -> None:
        self._files = files
        self._allowed = read_list(settings.sources, settings.source_networks)
        self._max_bytes = settings.max_file_bytes
        bounds = settings.max_file_bytes, settings.source_timeout_s
        self._downloads = Downloads(self._allowed, *bounds)
        self._buckets = Buckets(*bounds)

    def name(self, reference: str, param: str) -> str:
        """Return what the user calls a source, without secrets.

        Raises:
            NotFound: no such uploaded file.
        """
        if reference.startswith("/"):
            return _printable(PurePosixPath(reference).name)
        if "://" in reference:
            return _printable(PurePosixPath(unquote(_address(reference, param).path)).name)
        return self._files.find(reference, None, param).filename  # whose it is was seen before

    def files(self, reference: str, target: Path, param: str) -> list[SourceFile]:
        """Return a source's files, fetched into the folder `target` where they were far away.

        Raises:
            NotFound: no such uploaded file.
            PermissionDenied: the operator's list does not have it.
            InvalidRequest: it is no source, has no data, or cannot be read.
        """
        if len(reference) > _MAX_CHARS:
            raise InvalidRequest(f"{param} must have at most {_MAX_CHARS} characters", param)
        if reference.startswith("/"):
            return self._local(reference, param)
        name = self.name(reference, param)
        if "://" not in reference:
            self._files.blobs.fetch(reference, target / "file", param)
            return [SourceFile(target / "file", name)]
        address = _address(reference, param)
        if not self._allowed.has_address(address):
            raise _not_listed(param)
        if address.scheme != "s3":
            self._downloads.fetch(reference, target / "file", param)
            return [SourceFile(target / "file", name)]
        if address.path.endswith("/"):
            self._buckets.fetch(address, target, param)
            return list_folder(target.resolve(), param)
        self._buckets.fetch(address, target / "file", param)
        return [SourceFile(target / "file", name)]

    def _local(self, reference: str, param: str) -> list[SourceFile]:
        try:
            path = Path(reference).resolve(strict=True)
        except (OSError, ValueError):
            path = None
        # The same answer for both: who may not read a folder shall not learn what is in it.
        if path is None or not self._allowed.has_folder_of(path):
            raise _not_listed(param)
        if path.is_dir():
            files = list_folder(path, param)
            num_bytes = sum(file.path.stat().st_size for file in files)
        elif path.is_file():
            files, num_bytes = [SourceFile(path, _printable(path.name))], path.stat().st_size
        else:
            raise InvalidRequest(f"{param} must be a plain file or a folder", param)
        if num_bytes > self._max_bytes:
            raise too_large(param, self._max_bytes)
        return files


def _not_listed(param: str) -> PermissionDenied:
    return PermissionDenied(
        f"{param} must be the id of an uploaded file, or something that is there and lies below a "
        "folder, an address or a bucket that the operator has listed in MATRYOSHKA_TRAINER_SOURCES",
        param,
    )


def _address(reference: str, param: str) -> Address:
    try:
        return read_address(reference)
    except ValueError as error:
        raise InvalidRequest(
            f"{param} must be a plain http, https or s3 address, without a password in it", param
        ) from error


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name)[:255] or "source"
