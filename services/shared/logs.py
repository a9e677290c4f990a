"""Log lines for people or machines, on standard error.

What a line may carry: counts, sizes, times, names of models and collections. What it never
carries: a user's text, a vector, a key.
"""

import json
import logging
import sys


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if settings := getattr(record, "settings", None):
            line["settings"] = settings
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")


def configure(log_format: str) -> None:
    """Send all log lines of this process to standard error in the given format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _text_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Request lines of the HTTP server and client are metrics' work, not the log's.
    for noisy in ("uvicorn", "httpx", "sentence_transformers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def show_settings(name: str, resolved: dict[str, object], changed: dict[str, object]) -> None:
    """Log the settings at start, secrets masked: for people what differs, for machines all.

    Args:
        name: of the service, or of the process.
        resolved: all settings.
        changed: those of them that a reader who knows the defaults wants to see, one a line.
    """
    lines = [f"  {field}={value}" for field, value in sorted(changed.items())]
    what = "settings that are not the defaults:" if lines else "all settings are the defaults"
    logging.getLogger(name).info("\n".join([what, *lines]), extra={"settings": resolved})
