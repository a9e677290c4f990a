"""Whether an error means that the disk is full, from whichever library it comes."""

import errno

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# What libraries written in Rust, safetensors and tokenizers, make of the same numbers.
_WORDS = ("os error 28", "os error 122", "code: 28", "code: 122", "No space left", "StorageFull")


def is_disk_full(error: BaseException | None) -> bool:
    """Say whether an error, or what it was raised from, means a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
