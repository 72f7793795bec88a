"""Finding a model, and refusing what should not be loaded."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from grpo_jax.models import hub, smollm2

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path):
    """A directory that passes the check."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Nothing listens on the discard port, and nothing is cached."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_directory_is_located_by_its_path(model):
    assert hub.locate(str(model)) == model


def test_a_directory_may_be_written_with_a_tilde(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert hub.locate(f"~/{model.name}") == model


@pytest.mark.parametrize("name", ["smollm2", "SmolLM2-135M-Instruct", "smollm2-135m-instuct"])
def test_a_name_that_is_nearly_right_gets_a_suggestion(name):
    with pytest.raises(FileNotFoundError, match="Did you mean 'smollm2-135m-instruct'"):
        hub.locate(name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere/", "a/b/c", "nowhere", "../org/name"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_network(name):
    with pytest.raises(FileNotFoundError, match=f"'{name}' is none of them"):
        hub.locate(name)


@pytest.mark.faults
def test_without_the_hub_the_error_names_models_that_need_no_hub(no_hub):
    with pytest.raises(FileNotFoundError, match=r"org/name.*cannot be reached.*directory.*smollm2-135m-instruct"):
        hub.locate("org/name")


@pytest.mark.faults
def test_offline_mode_sends_no_request(monkeypatch, tmp_path):
    with LocalHub({}) as asked:
        monkeypatch.setattr(constants, "ENDPOINT", asked.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
            hub.locate("org/name")
    assert asked.paths == []


def test_a_cached_repository_is_found_without_the_hub(no_hub, model):
    repository = Path(constants.HF_HUB_CACHE) / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (model / name).rename(snapshot / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert hub.locate("org/name") == snapshot


def test_only_safe_files_are_downloaded_and_only_once(tmp_path, model):
    wanted = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors")}
    wanted |= {"tokenizer.json": b"{}", "chat_template.jinja": b"hello"}
    unwanted = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "original/params.json", "README.md")
    with LocalHub(wanted | dict.fromkeys(unwanted, b"no")) as asked:
        first = locate_elsewhere(asked.url, tmp_path / "cache")
        requests = len(asked.paths)
        assert locate_elsewhere(asked.url, tmp_path / "cache") == first
    assert {path.name: path.read_bytes() for path in first.iterdir()} == wanted
    assert len(asked.paths) == requests > 0


def test_a_repository_the_hub_does_not_know_is_named(tmp_path):
    with LocalHub({}) as asked, pytest.raises(ChildProcessError, match=r"does not give out org/other.*HF_TOKEN"):
        locate_elsewhere(asked.url, tmp_path, name="org/other")


def test_a_complete_directory_passes_the_check(model):
    hub.check(model)


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        hub.check(tmp_path)


def test_a_directory_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        hub.check(model)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_that_are_only_pickles_are_refused(model, name):
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(ValueError, match=f"only as pickles \\({name}\\)"):
        hub.check(model)


@pytest.mark.faults
def test_code_that_comes_with_a_model_is_refused(model):
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Evil"}}')
    with pytest.raises(ValueError, match=r"auto_map.*never run"):
        hub.check(model)


@pytest.mark.faults
def test_a_missing_shard_is_named(model):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"not there: model-00002\.safetensors"):
        hub.check(model)


def test_a_broken_config_is_named(model):
    (model / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        hub.check(model)


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_that_were_cut_short_are_refused(model, content):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        hub.check(model)


@pytest.mark.faults
def test_a_file_that_differs_from_its_checksum_is_refused(model):
    config_file = model / "config.json"
    (model / smollm2.CHECKSUMS).write_text(f"{smollm2.sha256(config_file)}  config.json\n")
    hub.check(model)
    config_file.write_text('{"model_type": "gemma"}')
    with pytest.raises(ValueError, match="damaged, changed or missing"):
        hub.check(model)


def locate_elsewhere(endpoint: str, cache: Path, name: str = "org/name") -> Path:
    """What `locate` gives in a process of its own: the hub's address is read when its client is imported."""
    program = f"from grpo_jax.models import hub; print(hub.locate({name!r}))"
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | settings,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChildProcessError(done.stderr)
    return Path(done.stdout.splitlines()[-1])


class LocalHub:
    """A hub on this machine with one model, org/name, that consists of `files`."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.paths = files, []
        local_hub = self

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                local_hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler):
        path = request.path.partition("?")[0]
        self.paths.append(path)
        content = self.content(path)
        request.send_response(404 if content is None else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{abs(hash(content)):x}"')
        request.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            request.send_header("X-Error-Code", "RepoNotFound")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content or b"")

    def content(self, path: str) -> bytes | None:
        if path.startswith("/api/models/org/name/tree/"):
            files = [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in self.files.items()]
            return json.dumps(files).encode()
        if path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": p} for p in self.files]
            return json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
        return self.files.get(path.removeprefix(f"/org/name/resolve/{COMMIT}/"))


@pytest.mark.faults
def test_a_run_that_is_not_there_is_told_by_what_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="There is no quickstar in runs: it holds quickstart"):
        hub.locate("runs/quickstar")


def test_a_model_that_names_copies_of_code_that_transformers_has_is_no_model_with_code_of_its_own(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    copies = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3", "auto_map": copies}))
    hub.check(tmp_path)
    for named in (copies | {"AutoModel": "modeling.Evil"}, "modeling.Evil"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3", "auto_map": named}))
        with pytest.raises(ValueError, match="never run"):
            hub.check(tmp_path)
