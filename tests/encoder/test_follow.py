"""What promotions make every encoder serve: taken from the file at the start, and as it changes."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from services.encoder.follow import Follower
from services.shared.errors import InvalidRequest
from services.shared.served import Served, write_served


class Models:
    """Takes everything, and notes it; the tests of promotions have the real one."""

    def __init__(self):
        self.ids = ["live"]
        self.aliases = {"default": "live"}
        self.calls = []
        self.broken = set()

    def list(self):
        return [SimpleNamespace(id=model_id) for model_id in self.ids]

    async def load(self, source, model_id):
        if model_id in self.broken:
            raise InvalidRequest(f"{model_id} has no weights")
        self.calls.append(("load", model_id))
        self.ids.append(model_id)

    async def set_alias(self, alias, model_id):
        self.calls.append(("alias", alias))
        self.aliases[alias] = model_id


@pytest.fixture
def models():
    return Models()


@pytest.fixture
async def follower(tmp_path, models):
    follower = Follower(tmp_path / "served.json", models)
    yield follower
    await follower.stop()


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(exist_ok=True)
    return {name: str(tmp_path / name) for name in names}


async def test_what_is_named_is_there_when_it_has_started(tmp_path, models, follower, caplog):
    """But for what nobody can load any more, which is told in the log."""
    write_served(
        tmp_path / "served.json",
        Served(
            models=folders(tmp_path, "a", "live") | {"gone": str(tmp_path / "gone")},
            aliases={"default": "a", "old": "gone"},
        ),
    )
    with caplog.at_level(logging.ERROR):
        await follower.start()
    assert models.calls == [("load", "a"), ("alias", "default")]
    assert models.aliases == {"default": "a"}
    assert "gone was promoted, and its folder" in caplog.text
    assert "old shall be gone, which is not loaded here" in caplog.text


async def test_what_changes_later_is_taken_and_nothing_else(tmp_path, models, follower):
    """A name that somebody has pointed elsewhere since stays there; there was no file at first."""
    await follower.start()
    assert models.calls == []
    path = tmp_path / "served.json"
    write_served(path, Served(models=folders(tmp_path, "a"), aliases={"default": "a"}))
    await until(lambda: models.aliases["default"] == "a")
    models.aliases["default"] = "live"
    path.write_text("no JSON")
    await asyncio.sleep(1.2)
    write_served(
        path, Served(models=folders(tmp_path, "a", "b"), aliases={"default": "a", "new": "b"})
    )
    await until(lambda: models.aliases.get("new") == "b")
    assert models.aliases["default"] == "live"
    assert [call for call in models.calls if call[0] == "load"] == [("load", "a"), ("load", "b")]


async def test_what_could_not_be_taken_is_tried_again(
    tmp_path, models, follower, monkeypatch, caplog
):
    """A folder may come after its name, and a model may be mended; the file stays as it is."""
    monkeypatch.setattr("services.encoder.follow._AGAIN_S", 1.0)
    models.broken.add("b")
    await follower.start()
    late = str(tmp_path / "late")
    write_served(
        tmp_path / "served.json",
        Served(
            models=folders(tmp_path, "b", "a") | {"late": late},
            aliases={"default": "late", "new": "b", "first": "a"},
        ),
    )
    await until(lambda: "b has no weights" in caplog.text)
    assert models.aliases["first"] == "a", "what can be taken is taken"
    models.ids.remove("a")  # somebody has unloaded it here
    models.broken.clear()
    await until(lambda: models.aliases.get("new") == "b")
    models.aliases["new"] = "live"
    folders(tmp_path, "late")
    await until(lambda: models.aliases["default"] == "late")
    assert models.aliases["new"] == "live"
    assert "a" not in models.ids
    # A later promotion may need again what was unloaded.
    write_served(
        tmp_path / "served.json", Served(models=folders(tmp_path, "a"), aliases={"default": "a"})
    )
    await until(lambda: models.aliases["default"] == "a")
    write_served(tmp_path / "served.json", Served(models=folders(tmp_path, "a")))
    await asyncio.sleep(1.5)
    models.aliases["default"] = "live"
    write_served(
        tmp_path / "served.json", Served(models=folders(tmp_path, "a"), aliases={"default": "a"})
    )
    await until(lambda: models.aliases["default"] == "a")


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_file_that_is_none_ends_the_start(tmp_path, follower):
    """It would be ready without what it must serve."""
    (tmp_path / "served.json").write_text('{"models": ["a"]}')
    with pytest.raises(InvalidRequest, match=r"served\.json cannot be read"):
        await follower.start()
