"""Whose a key is: read whole or not at all, never guessed, never shown."""

import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from services.shared.auth import ANY_SCOPE, Principal, Scope, is_tenant
from services.shared.errors import InvalidRequest, PermissionDenied, Unauthenticated
from services.shared.keys import Keys
from services.shared.keys_file import KeysError
from services.shared.limits import NO_LIMITS, Limits, OverLimit


def entry(name, key, **more):
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} | more


def write(path, *entries, as_list=False):
    lines = "\n".join(json.dumps(entry) for entry in entries) + "\n"
    # As an operator should: a file that is being written is never read.
    new = path.with_suffix(".new")
    new.write_text(json.dumps(entries) if as_list else lines)
    os.replace(new, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


ACME = entry("acme-1", "k-acme", tenant="acme")
OPS = entry("ops", "k-ops")


def test_without_keys_everybody_is_an_operator():
    """As long as nothing is set, nobody is asked."""
    assert Keys().principal(None).tenant is None


@pytest.mark.parametrize("as_list", [False, True])
def test_each_key_is_somebodys(path, as_list):
    """The settings' key and those of a file, as lines or as a list."""
    keys = Keys(SecretStr("k-own"), write(path, OPS, ACME, as_list=as_list))
    assert keys.principal("Bearer k-own").tenant is None
    assert keys.principal("bearer k-ops") == Principal("ops")
    assert keys.principal("Bearer k-acme") == Principal("acme-1", "acme")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic k-acme", "k-acme",
               "Bearer k-acme ", f"Bearer {ACME['sha256']}", "Bearer \udcff"],
)  # fmt: skip
def test_any_other_header_is_refused(path, header):
    """Also a key's digest, and with a file alone also no key at all."""
    for keys in (Keys(None, write(path, ACME)), Keys(SecretStr("k-own"))):
        with pytest.raises(Unauthenticated):
            keys.principal(header)


WRONG = {
    "no JSON": ("acme", "line 2: must be JSON such as"),
    "no object": ("[]", "line 2: must be JSON such as"),
    "misspelt": (json.dumps(entry("a", "a", tenat="acme")), "line 2: there is no field 'tenat'"),
    "no name": (json.dumps({"sha256": OPS["sha256"]}), "line 2: name must be"),
    "no digest": (json.dumps({"name": "a"}), "line 2: sha256 must be"),
    "upper": (json.dumps({"name": "a", "sha256": ACME["sha256"].upper()}), "sha256 must be"),
    "empty key": (json.dumps(entry("a", "")), "line 2: sha256 is that of an empty key"),
    "null": (json.dumps(entry("a", "a", tenant=None)), "leave it out for an operator's key"),
    "no tenant": (json.dumps(entry("a", "a", tenant="")), "line 2: tenant must be"),
    "bad tenant": (json.dumps(entry("a", "a", tenant="a/b")), "line 2: tenant must be"),
    "name twice": (json.dumps(entry("acme-1", "b")), "each name must stand there once"),
    "key twice": (json.dumps(entry("b", "k-acme")), "each sha256 must stand there once"),
    "own": (json.dumps(entry("b", "k-own")), "operator's own key"),
    "no scope": (json.dumps(entry("a", "a", scopes=[])), "line 2: scopes must be a list of some"),
    "bad scope": (json.dumps(entry("a", "a", scopes=["Embed"])), "line 2: scopes must be"),
    "one scope": (json.dumps(entry("a", "a", scopes="embed")), "line 2: scopes must be"),
    "no limit": (json.dumps(entry("a", "a", requests_per_minute=0)), "must be a whole number"),
    "part": (json.dumps(entry("a", "a", concurrent_calls=1.5)), "must be a whole number"),
    "true": (json.dumps(entry("a", "a", concurrent_calls=True)), "must be a whole number"),
}


@pytest.mark.parametrize(("line", "says"), WRONG.values(), ids=WRONG)
def test_a_file_with_a_mistake_is_refused_whole(path, line, says):
    """Whatever it is, and without a digest in the message."""
    path.write_text(f"{json.dumps(ACME)}\n{line}\n")
    with pytest.raises(KeysError) as caught:
        Keys(SecretStr("k-own"), path)
    assert says in str(caught.value)
    assert ACME["sha256"] not in str(caught.value)


def test_all_mistakes_are_told_at_once(path):
    """Who mends one need not find the next by starting again."""
    path.write_text("\n".join(line for line, _ in WRONG.values()))
    with pytest.raises(KeysError) as caught:
        Keys(None, path)
    assert str(caught.value).count("\n") >= 10


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "[", "[1", '["x"', "\ud7ff"])
def test_a_file_without_keys_is_refused(path, content):
    """An empty one is a file that is just being written; a missing one is a mistake too."""
    path.write_text(content)
    with pytest.raises(KeysError):
        Keys(None, path)
    path.unlink()
    with pytest.raises(KeysError, match="cannot be read"):
        Keys(None, path)


def test_a_changed_file_counts_and_a_bad_one_does_not(path, caplog):
    """Keys are given and taken while the process runs; the settings' key stays."""
    keys = Keys(SecretStr("k-own"), write(path, ACME))
    write(path, OPS)
    keys.refresh()
    assert keys.principal("Bearer k-ops") == Principal("ops")
    with pytest.raises(Unauthenticated):
        keys.principal("Bearer k-acme")
    for spoil in (lambda: path.write_text("{"), path.unlink):
        spoil()
        caplog.clear()
        keys.refresh()
        keys.refresh()
        assert keys.principal("Bearer k-ops") == Principal("ops")
        assert [record.levelname for record in caplog.records] == ["ERROR"], "told once"
    write(path, ACME)
    keys.refresh()
    assert keys.principal("Bearer k-acme").tenant == "acme"
    assert keys.principal("Bearer k-own").tenant is None
    assert "k-" not in caplog.text
    assert ACME["sha256"] not in caplog.text


def test_a_key_is_for_some_scopes_and_has_limits_of_its_own(path):
    """What a line does not say comes from the settings; the settings' own key has no limit."""
    write(
        path, OPS, entry("shop", "k-shop", scopes=["search", "embed"], requests_per_minute=600),
        entry("bulk", "k-bulk", tenant="acme", scopes=["write"], concurrent_calls=None),
    )  # fmt: skip
    keys = Keys(SecretStr("k-own"), path, Limits(60, 4))
    expected = {
        "k-own": (ANY_SCOPE, NO_LIMITS),
        "k-ops": (ANY_SCOPE, Limits(60, 4)),
        "k-shop": (Scope.SEARCH | Scope.EMBED, Limits(600, 4)),
        "k-bulk": (Scope.WRITE, Limits(60, None)),
    }
    for key, wanted in expected.items():
        found = keys.principal(f"Bearer {key}")
        assert (found.scopes, found.allowance.limits) == wanted, key
    bulk = keys.principal("Bearer k-bulk")
    assert bulk.acting_for("acme").scopes == Scope.WRITE


def test_a_changed_file_forgets_no_use(path):
    """Else a key would begin anew with every other key that comes or goes."""
    keys = Keys(None, write(path, entry("slow", "k-slow", requests_per_minute=1)))
    with keys.principal("Bearer k-slow").allowance.use():
        pass
    write(path, entry("slow", "k-slow", requests_per_minute=1, scopes=["embed"]), ACME)
    keys.refresh()
    slow = keys.principal("Bearer k-slow")
    assert slow.scopes == Scope.EMBED
    with pytest.raises(OverLimit), slow.acting_for("acme").allowance.use():
        pass


async def test_the_watch_sees_a_change_by_itself(path, monkeypatch):
    """Without a call, and without holding up the loop."""
    import asyncio

    # A second is long for a test.
    monkeypatch.setattr("services.shared.watch._LOOK_S", 0.01)
    keys = Keys(None, write(path, ACME))
    watching = asyncio.create_task(keys.watch())
    write(path, OPS)
    async with asyncio.timeout(10):
        while "k-ops" not in keys_that_work(keys):
            await asyncio.sleep(0.01)
    watching.cancel()
    assert keys_that_work(keys) == ["k-ops"]


def keys_that_work(keys):
    working = []
    for key in ("k-ops", "k-acme"):
        try:
            keys.principal(f"Bearer {key}")
        except Unauthenticated:
            continue
        working.append(key)
    return working


def test_an_operator_may_act_for_a_tenant_and_no_tenant_for_another():
    """A tenant may say its own name, and nobody one that no tenant can have."""
    operator, acme = Principal("ops"), Principal("acme-1", "acme")
    assert operator.acting_for(None) is operator
    assert operator.acting_for("acme").tenant == "acme"
    assert acme.acting_for(None) is acme
    assert acme.acting_for("acme") is acme
    with pytest.raises(PermissionDenied):
        acme.acting_for("globex")
    for name in ("", "a/b", "a" * 65):
        with pytest.raises(InvalidRequest):
            operator.acting_for(name)


@given(st.text(max_size=70))
def test_a_tenants_name_is_a_word(name):
    """It stands in names of slices, in payloads and in metadata, and never means anything there."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
    assert is_tenant(name) == (1 <= len(name) <= 64 and set(name) <= allowed)
