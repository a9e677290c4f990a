"""Settings come typed from the environment, and all mistakes are told at once."""

import pytest

from services.encoder.settings import EncoderSettings
from services.shared.settings import SettingsError


def test_all_mistakes_are_reported_at_once(monkeypatch):
    """One start shows every wrong variable, by its name."""
    # The environment is the interface under test.
    monkeypatch.setenv("MATRYOSHKA_ENCODER_HTTP_PORT", "99999")
    monkeypatch.setenv("MATRYOSHKA_ENCODER_MAX_TEXTS", "many")
    with pytest.raises(SettingsError) as caught:
        EncoderSettings.read()
    assert "MATRYOSHKA_ENCODER_HTTP_PORT" in str(caught.value)
    assert "MATRYOSHKA_ENCODER_MAX_TEXTS" in str(caught.value)


def test_the_command_line_wins(monkeypatch):
    """An option overrides the environment; an option not given does not."""
    monkeypatch.setenv("MATRYOSHKA_ENCODER_HTTP_PORT", "1234")
    assert EncoderSettings.read(http_port=4321).http_port == 4321
    assert EncoderSettings.read(http_port=None).http_port == 1234


def test_secrets_are_masked():
    """The start-up log never shows the key."""
    settings = EncoderSettings.read(api_key="sk-planted")
    assert "sk-planted" not in str(settings.describe())
    assert "sk-planted" not in repr(settings)
