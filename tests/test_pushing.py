"""`grpo-jax export --push` sends all files to the hub; a stand-in on this machine answers the calls."""

import socket

import jax
import pytest
from fakes.hub import Calls, running_hub
from huggingface_hub import constants

from grpo_jax.cli import main
from grpo_jax.models import hub as pushing

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface-hub's own
TOKEN = "hf_Zq81kdOwpsnVbXlwm39rTUyzKc"


@pytest.fixture
def online(monkeypatch):
    """The hub is where a test says it is, and this process has a token for it."""
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # this process has started its backend
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


def test_every_file_of_an_export_arrives_in_a_private_repository(tmp_path, online, capsys):
    with running_hub() as hub:
        online(hub.url)
        assert main(["export", "tiny", "--out", str(tmp_path / "out"), "--push", "someone/tiny-sums"]) == 0
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    } <= hub.files.keys()
    assert hub.repositories.keys() == {"someone/tiny-sums"}
    assert "private" in (
        hub.repositories["someone/tiny-sums"].get("visibility"),
        *hub.repositories["someone/tiny-sums"],
    )
    assert hub.tokens == {f"Bearer {TOKEN}"}
    said = capsys.readouterr()
    assert said.out == f"{hub.url}/someone/tiny-sums/commit/{'0' * 40}\n"
    assert TOKEN not in said.err


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        ("/repos/create", 401, "Invalid username or password."),
        ("/repos/create", 404, "The organization nowhere does not exist"),
        ("/repos/create", 403, "You don't have the rights to create a model under the namespace nowhere"),
        ("/preupload/", 401, "Token is expired"),
        ("/lfs/objects/batch", 403, "Storage limit reached"),
        ("/large/", 403, "The signature has expired"),
        ("/commit/", 400, "Bad commit"),
    ],
)
@pytest.mark.faults
def test_what_the_hub_refuses_is_one_sentence_without_the_token(call, status, sentence, tmp_path, online, capsys):
    with running_hub({call: (status, sentence)}) as hub:
        online(hub.url)
        assert main(["export", "tiny", "--out", str(tmp_path / "out"), "--push", "nowhere/name"]) == 2
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert sentence in last and hub.url in last and "is written, but" in last and "hf upload nowhere/name" in last
    assert TOKEN not in said and "Traceback" not in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.faults
def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path, online):
    online("http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"is written, but .*http://127.0.0.1:9.*hf upload org/name") as caught:
        pushing.push(tmp_path, "org/name")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


@pytest.mark.faults
def test_a_hub_that_hangs_up_is_one_sentence(tmp_path, online, monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(Calls, "do_POST", lambda self: self.connection.shutdown(socket.SHUT_RDWR))
        online(hub.url)
        with pytest.raises(ValueError, match=r"is written, but .*hf upload org/name"):
            pushing.push(tmp_path, "org/name")
