"""Settings come typed from the environment, and all mistakes are told at once."""

from pathlib import Path

import pytest

from services.encoder.settings import EncoderSettings
from services.router.settings import RouterSettings
from services.shared.settings import SettingsError, ignored


def test_all_mistakes_are_reported_at_once(monkeypatch):
    """One start shows every wrong variable, by its name."""
    # The environment is the interface under test.
    monkeypatch.setenv("MATRYOSHKA_ENCODER_HTTP_PORT", "99999")
    monkeypatch.setenv("MATRYOSHKA_ENCODER_MAX_TEXTS", "many")
    with pytest.raises(SettingsError) as caught:
        EncoderSettings.read()
    assert "MATRYOSHKA_ENCODER_HTTP_PORT" in str(caught.value)
    assert "MATRYOSHKA_ENCODER_MAX_TEXTS" in str(caught.value)
    assert "got 'many'" in str(caught.value)


def test_a_misspelt_variable_is_a_mistake_and_a_strangers_is_not(monkeypatch):
    """What would be ignored silently is told; what Kubernetes sets for a service is left alone."""
    monkeypatch.setenv("MATRYOSHKA_ENCODER_PORT", "tcp://10.0.0.7:9000")
    monkeypatch.setenv("MATRYOSHKA_ENCODER_SERVICE_HOST", "10.0.0.7")
    EncoderSettings.read()
    monkeypatch.setenv("MATRYOSHKA_ENCODER_CACHEBYTES", "5")
    with pytest.raises(SettingsError, match="did you mean MATRYOSHKA_ENCODER_CACHE_BYTES"):
        EncoderSettings.read()


def test_what_looks_like_a_setting_and_is_none_is_told(monkeypatch):
    """By name, with the nearest that is one; of other services nothing is known or said."""
    read = [RouterSettings.read()]
    assert ignored(read) == []
    monkeypatch.setenv("MATRYOSHKA_ROUTER_SHADOW", "sk-planted")
    monkeypatch.setenv("MATRYOSHKA_ROUTER_PORT", "9001")
    monkeypatch.setenv("MATRYOSHKA_ROUTER_XYZ", "1")
    monkeypatch.setenv("MATRYOSHKA_ROUTR_QDRANT_URL", "http://qdrant:6333")
    monkeypatch.setenv("MATRYOSHKA_API_KEY", "sk-planted")
    monkeypatch.setenv("MATRYOSHKA_FUZZ_SEED", "1")
    monkeypatch.setenv("MATRYOSHKA_ENCODER_XYZ", "1")
    assert RouterSettings.read() == read[0]
    assert ignored(read) == [
        "MATRYOSHKA_ROUTER_PORT is not a setting; did you mean MATRYOSHKA_ROUTER_GRPC_PORT or "
        "MATRYOSHKA_ROUTER_HTTP_PORT?",
        "MATRYOSHKA_ROUTER_SHADOW is not a setting; did you mean MATRYOSHKA_ROUTER_SHADOW_QUEUE or "
        "MATRYOSHKA_ROUTER_SHADOW_SHARE?",
        "MATRYOSHKA_ROUTER_XYZ is not a setting; docs/settings.md lists them",
        "MATRYOSHKA_API_KEY is not a setting; did you mean MATRYOSHKA_ROUTER_API_KEY?",
        "MATRYOSHKA_ROUTR_QDRANT_URL is not a setting; did you mean MATRYOSHKA_ROUTER_QDRANT_URL?",
    ]


def test_what_kubernetes_tells_of_its_services_is_left_alone(monkeypatch):
    """A Service named matryoshka-router gives every pod of its namespace these."""
    for name, value in (
        ("SERVICE_HOST", "10.0.0.7"),
        ("SERVICE_PORT", "9001"),
        ("SERVICE_PORT_GRPC", "9001"),
        ("PORT", "tcp://10.0.0.7:9001"),
        ("PORT_9001_TCP", "tcp://10.0.0.7:9001"),
        ("PORT_9001_TCP_PROTO", "tcp"),
        ("PORT_9001_TCP_PORT", "9001"),
        ("PORT_9001_TCP_ADDR", "10.0.0.7"),
    ):
        for service in ("MATRYOSHKA_ROUTER", "MATRYOSHKA_ROUTER_GRPC1", "MATRYOSHKA_QDRANT"):
            monkeypatch.setenv(f"{service}_{name}", value)
    assert ignored([RouterSettings.read()]) == []


def test_files_of_secrets_are_looked_at_too(tmp_path):
    """One that nothing reads is told as a variable is."""
    (tmp_path / "matryoshka_router_peer_keys").write_text("sk-planted")
    assert ignored([RouterSettings.read(secrets_dir=tmp_path)]) == [
        "MATRYOSHKA_ROUTER_PEER_KEYS is not a setting; did you mean "
        "MATRYOSHKA_ROUTER_PEER_KEYS_FILE?"
    ]


@pytest.mark.parametrize("address", ["localhost", "http://encoder:9000", "encoder:", ":9000", ""])
def test_an_address_names_its_port(monkeypatch, address):
    """What gRPC would take for something else is told with what would be right."""
    monkeypatch.setenv("MATRYOSHKA_ROUTER_ENCODER_ADDRESS", address)
    with pytest.raises(SettingsError, match="ENCODER_ADDRESS must be host:port of gRPC, such as"):
        RouterSettings.read()


@pytest.mark.parametrize("address", ["encoder:9000", "[::1]:9000", "dns:///encoder:9000"])
def test_addresses_of_grpc_are_taken(address):
    assert RouterSettings.read(trainer_address=address).trainer_address == address


def test_tls_settings_go_together():
    """A key without its certificate, or callers' certificates without TLS, protect nothing."""
    with pytest.raises(SettingsError) as caught:
        RouterSettings.read(tls_key="key", tls_http_client_ca="ca", probe_port=99999)
    told = str(caught.value)
    assert "MATRYOSHKA_ROUTER_TLS_KEY and TLS_CERT go together" in told
    assert "MATRYOSHKA_ROUTER_TLS_HTTP_CLIENT_CA needs TLS_CERT and TLS_KEY" in told
    assert "MATRYOSHKA_ROUTER_PROBE_PORT" in told
    settings = RouterSettings.read(tls_cert="cert", tls_key="key", tls_peer_ca="ca")
    assert settings.peer_tls.paths == [Path("cert"), Path("key"), Path("ca")]
    assert RouterSettings.read(tls_cert="cert", tls_key="key").peer_tls is None


def test_a_wrong_secret_is_not_shown(monkeypatch):
    """A mistake is told with the value that was given, unless that is a secret."""
    with pytest.raises(SettingsError) as caught:
        EncoderSettings.read(api_key=["sk-planted"])
    assert "MATRYOSHKA_ENCODER_API_KEY" in str(caught.value)
    assert "sk-planted" not in str(caught.value)


def test_the_command_line_wins(monkeypatch):
    """An option overrides the environment; an option not given does not."""
    monkeypatch.setenv("MATRYOSHKA_ENCODER_HTTP_PORT", "1234")
    assert EncoderSettings.read(http_port=4321).http_port == 4321
    assert EncoderSettings.read(http_port=None).http_port == 1234


def test_secrets_come_from_files_too(monkeypatch, tmp_path):
    """A folder as Kubernetes mounts it; what is set in the environment wins."""
    content = tmp_path / "..2026"
    content.mkdir()
    (tmp_path / "..data").symlink_to(content)
    for field, value in (("api_key", "sk-file\n"), ("encoder_api_key", "sk-peer")):
        name = f"matryoshka_router_{field}"
        (content / name).write_text(value)
        (tmp_path / name).symlink_to(tmp_path / "..data" / name)
    monkeypatch.setenv("MATRYOSHKA_ROUTER_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("MATRYOSHKA_ROUTER_ENCODER_API_KEY", "sk-environment")
    settings = RouterSettings.read()
    assert settings.api_key.get_secret_value() == "sk-file"
    assert settings.encoder_api_key.get_secret_value() == "sk-environment"


def test_a_folder_of_secrets_that_would_protect_nothing_is_a_mistake(monkeypatch, tmp_path):
    """One that is not there, or has no such file, a name that is misspelt, what is no text."""
    monkeypatch.setenv("MATRYOSHKA_ROUTER_SECRETS_DIR", str(tmp_path / "absent"))
    monkeypatch.setenv("MATRYOSHKA_ROUTER_HTTP_PORT", "99999")
    with pytest.raises(SettingsError) as caught:
        RouterSettings.read()
    assert "MATRYOSHKA_ROUTER_SECRETS_DIR must be an absolute folder that is there" in str(
        caught.value
    )
    assert "MATRYOSHKA_ROUTER_HTTP_PORT" in str(caught.value)
    monkeypatch.delenv("MATRYOSHKA_ROUTER_HTTP_PORT")
    monkeypatch.setenv("MATRYOSHKA_ROUTER_SECRETS_DIR", "")
    with pytest.raises(SettingsError, match="must be an absolute folder"):
        RouterSettings.read()
    monkeypatch.setenv("MATRYOSHKA_ROUTER_SECRETS_DIR", str(tmp_path))
    (tmp_path / "api-key").write_text("sk-planted")
    with pytest.raises(SettingsError, match="must hold files that are named after variables"):
        RouterSettings.read()
    misspelt = tmp_path / "matryoshka_router_apikey"
    misspelt.write_text("sk-planted")
    with pytest.raises(SettingsError, match="APIKEY is not a setting; did you mean") as caught:
        RouterSettings.read()
    assert "sk-planted" not in str(caught.value)
    misspelt.unlink()
    (tmp_path / "matryoshka_router_api_key").write_bytes(b"sk-planted\xff")
    with pytest.raises(SettingsError, match='value for field "api_key"') as caught:
        RouterSettings.read()
    assert "planted" not in str(caught.value)


def test_secrets_are_masked():
    """The start-up log never shows the key."""
    settings = EncoderSettings.read(api_key="sk-planted")
    assert "sk-planted" not in str(settings.describe())
    assert "sk-planted" not in repr(settings)
