"""The keys that services send each other: each has one for each peer, for its work alone."""

import base64

import pytest

from services.encoder.service import EncoderService
from services.router.service import RouterService
from services.shared.auth import Scope
from services.shared.errors import PermissionDenied, Unauthenticated
from services.shared.keys import Keys
from services.trainer.service import TrainerService
from tests.chart.chart import CASES, rendered, values
from tests.contract.test_scopes import PEERS

KINDS = {"encoder": EncoderService, "router": RouterService, "trainer": TrainerService}
SCOPES = {tuple(client.split("/")[i] for i in (0, -1)): found for client, found in PEERS.items()}


@pytest.fixture
def secret():
    found = rendered("default").one("Secret", "-services")["data"]
    return {name: base64.b64decode(value).decode() for name, value in found.items()}


def keys_of(secret, tmp_path, service):
    """The keys of a service as it reads them from its mounted file, without limits of their own."""
    path = tmp_path / f"{service}.jsonl"
    path.write_text(secret[f"{service}.jsonl"])
    return Keys(peers=path)


@pytest.mark.parametrize(("caller", "client"), SCOPES)
def test_a_services_key_is_for_what_it_needs_and_no_more(secret, tmp_path, caller, client):
    """It opens the calls of its scopes at the one peer, and nothing else anywhere."""
    peer = client.removesuffix("_client.py")
    kind, scopes = SCOPES[caller, client]
    sent = f"Bearer {secret[f'{caller}-to-{peer}']}"
    principal = keys_of(secret, tmp_path, peer).principal(sent)
    assert principal.scopes == scopes
    assert principal.allowance.limits.requests_per_minute is None
    for call, needed in kind.scopes.items():
        if needed & scopes:
            principal.check_may(call, kind.open_to_tenants, kind.scopes)
        else:
            with pytest.raises(PermissionDenied, match="needs a key with the scope"):
                principal.check_may(call, kind.open_to_tenants, kind.scopes)
    for other in KINDS.keys() - {peer}:
        with pytest.raises(Unauthenticated):
            keys_of(secret, tmp_path, other).principal(sent)


def test_the_routers_key_loads_no_model_and_promotes_nothing(secret, tmp_path):
    """What a router that was taken over could do at its peers."""
    at_encoder = keys_of(secret, tmp_path, "encoder").principal(
        f"Bearer {secret['router-to-encoder']}"
    )
    at_trainer = keys_of(secret, tmp_path, "trainer").principal(
        f"Bearer {secret['router-to-trainer']}"
    )
    at_encoder.check_may("Embed", frozenset(), EncoderService.scopes)
    at_trainer.check_may("CreateJob", frozenset(), TrainerService.scopes)
    for principal, kind, call in [
        (at_encoder, EncoderService, "LoadModel"), (at_encoder, EncoderService, "SetAlias"),
        (at_encoder, EncoderService, "UnloadModel"), (at_trainer, TrainerService, "Promote"),
        (at_trainer, TrainerService, "RollBackPromotion"),
    ]:  # fmt: skip
        assert not principal.scopes & Scope.ADMIN
        with pytest.raises(PermissionDenied, match=f"{call} needs a key with the scope admin"):
            principal.check_may(call, frozenset(), kind.scopes)


@pytest.mark.parametrize("case", CASES)
def test_only_doors_know_the_operators_key(case):
    """A pod has it to check it; what it sends is its own, and each sees its own peers' lines."""
    made, auth = rendered(case), values(case).get("auth", {})
    own_secrets = [found["metadata"]["name"] for found in made.of("Secret", "-services")]
    if not auth.get("enabled", True):
        assert own_secrets == []
        return
    (given,) = own_secrets or [auth["servicesSecret"]]
    for _, pod, _ in made.pods():
        (container,) = pod["spec"]["containers"]
        if container["name"] not in KINDS:
            continue
        own = container["name"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "secrets"]
        assert {"name": f"MATRYOSHKA_{own.upper()}_SECRETS_DIR", "value": mount["mountPath"]} in (
            container["env"]
        )
        (projected,) = [v["projected"] for v in pod["spec"]["volumes"] if v["name"] == "secrets"]
        sent = {
            item["path"].removeprefix(f"matryoshka_{own}_"): (source["secret"]["name"], item["key"])
            for source in projected["sources"]
            for item in source["secret"]["items"]
            if item["path"].endswith("_api_key") and "qdrant" not in item["path"]
        }
        assert sent.pop("api_key")[1] == "api-key"
        for name, found in sent.items():
            assert found == (given, f"{own}-to-{name.removesuffix('_api_key')}")
        assert len(sent) == (0 if own == "encoder" else 2)
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "peers"]
        items = [{"key": f"{own}.jsonl", "path": "keys.jsonl"}]
        assert volume["secret"] == {"secretName": given, "items": items}
