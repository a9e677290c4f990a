"""Log lines: settings at start, for people and for machines."""

import json
import logging

import pytest
from pydantic import SecretStr

from services.router.settings import RouterSettings
from services.shared import logs


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The process's own handlers are back after each test."""
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def show(capsys, log_format, **settings):
    logs.configure(log_format)
    read = RouterSettings(**settings)
    logs.show_settings("router", read.describe(), read.describe_changed())
    return capsys.readouterr().err


def test_people_see_what_differs_one_a_line(capsys):
    """No line of a hundred settings, and no secret."""
    told = show(capsys, "text", http_port=8123, host="0.0.0.0", api_key=SecretStr("sk-planted"))
    first, *lines = told.splitlines()
    assert first.endswith("router: settings that are not the defaults:")
    assert lines == ["  api_key=**********", "  host=0.0.0.0", "  http_port=8123"]
    assert show(capsys, "text").endswith("all settings are the defaults\n")


def test_machines_see_all_in_one_record(capsys):
    """Defaults too, as fields; masked as well."""
    told = show(capsys, "json", http_port=8123, api_key=SecretStr("sk-planted"))
    (line,) = told.splitlines()
    settings = json.loads(line)["settings"]
    assert set(settings) == set(RouterSettings.model_fields)
    assert (settings["http_port"], settings["api_key"]) == (8123, "**********")
    assert "sk-planted" not in told
