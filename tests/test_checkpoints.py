"""A checkpoint is restored only if its files are what was saved: else the newest that is, or an error that says why."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.cli import main
from grpo_jax.saved import manifest
from grpo_jax.saved.manifest import MANIFEST, list_step, verify, write_manifest
from grpo_jax.saved.steps import find_candidate
from grpo_jax.structs import TrainState
from grpo_jax.training import checkpoint
from grpo_jax.training.checkpoint import Checkpoints, Keep
from grpo_jax.training.restoring import OtherArraysError, restore_newest

pytestmark = pytest.mark.faults
KEEP = Keep(newest=3)


def state_of(step, dtype=jnp.float32, factor=1.0) -> TrainState:
    """A small state, laid out over all devices, whose numbers tell its step."""
    mesh = jax.make_mesh((8,), ("fsdp",))
    weights_DF = jax.random.normal(jax.random.key(step), (16, 32)) * factor
    weights_DF = jax.device_put(weights_DF, NamedSharding(mesh, PartitionSpec("fsdp")))
    scale_D = jax.device_put(jnp.ones(16), NamedSharding(mesh, PartitionSpec()))
    moments = {"mu": weights_DF.astype(dtype) / 2, "count": jnp.array(step)}
    return TrainState(jnp.array(step), {"layer": {"up_DF": weights_DF}, "scale_D": scale_D}, moments)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """A run directory with the checkpoints 1, 2 and 3; tests change copies of it."""
    path = tmp_path_factory.mktemp("saved") / "run"
    checkpoints = Checkpoints(path / "checkpoints", KEEP)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return path


@pytest.fixture
def run(three_steps, tmp_path):
    shutil.copytree(three_steps, tmp_path / "run")
    return tmp_path / "run"


def restored(run, early=False, strict=False, convert=False, like=None) -> TrainState | None:
    checkpoints = Checkpoints(run / "checkpoints", KEEP)
    try:
        return restore_newest(checkpoints, state_of(0) if like is None else like, early, strict, convert)
    finally:
        checkpoints.close()


def assert_is_step(state, step):
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << (position % 8)
    file.write_bytes(content)


def link(file):
    """The content is the same, but may change at any time."""
    other = file.with_name(f"{file.name}.real")
    file.rename(other)
    file.symlink_to(other)


DAMAGES = {
    "first byte": lambda file: flip(file, 0),
    "middle byte": lambda file: flip(file, file.stat().st_size // 2),
    "last byte": lambda file: flip(file, file.stat().st_size - 1),
    "truncated": lambda file: os.truncate(file, file.stat().st_size - 1),
    "emptied": lambda file: os.truncate(file, 0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "deleted": Path.unlink,
    "a link": link,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damage_of_any_file_of_a_step_is_found_and_the_step_before_is_used(three_steps, tmp_path, damage):
    names = files_of(three_steps / "checkpoints" / "3")
    assert len(names) > 6 and Path(MANIFEST) in names
    for index, name in enumerate(names):
        copy = tmp_path / str(index) / "checkpoints"
        shutil.copytree(three_steps / "checkpoints", copy)
        damage(copy / "3" / name)
        found = find_candidate(copy, early=False)
        assert found.step == 2, name
        assert "step 3" in found.skipped[3] and str(name) in found.skipped[3]


def test_every_kind_of_file_is_among_those_that_are_damaged(three_steps):
    """The names are those of Orbax: array data, their index, their shapes and shardings, and marks of a whole save."""
    names = " ".join(map(str, files_of(three_steps / "checkpoints" / "3")))
    for kind in ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "manifest.ocdbt", "/d/", "array_metadatas"):
        assert kind in names


@pytest.mark.parametrize("kind", ["_METADATA", "_sharding", "manifest.ocdbt", "d", "_CHECKPOINT_METADATA", MANIFEST])
def test_the_weights_of_the_step_before_are_those_restored(run, kind, caplog):
    (file, *_) = [run / "checkpoints" / "3" / n for n in files_of(run / "checkpoints" / "3") if kind in n.parts]
    flip(file, file.stat().st_size // 2)
    assert_is_step(restored(run), 2)
    assert "step 3 failed verification (file" in caplog.text and "using step 2" in caplog.text
    assert (run / "unusable" / "3").is_dir() and not (run / "checkpoints" / "3").exists()


def test_a_flipped_bit_is_an_error_if_strict_and_nothing_is_moved(run):
    flip(run / "checkpoints" / "3" / "_CHECKPOINT_METADATA", 5)
    with pytest.raises(ValueError, match=r"^step 3 failed verification .*--strict allows no other step.* step 2"):
        restored(run, strict=True)
    assert (run / "checkpoints" / "3").is_dir() and not (run / "unusable").exists()


def test_several_bad_steps_are_all_named(run, caplog):
    for step in ("2", "3"):
        flip(run / "checkpoints" / step / "default" / "_METADATA", 7)
    assert_is_step(restored(run), 1)
    assert "step 3 failed" in caplog.text and "step 2 failed" in caplog.text and "using step 1" in caplog.text


def test_a_run_without_any_whole_step_does_not_begin_again(run):
    for step in "123":
        flip(run / "checkpoints" / step / "default" / "_METADATA", 7)
    with pytest.raises(ValueError, match=r"^No checkpoint in .* can be used: step 3 failed .*step 2 .*step 1 failed"):
        restored(run)
    assert (run / "checkpoints" / "3").is_dir()


def make_empty(folder):
    (folder / "9").mkdir()


def make_file(folder):
    (folder / "9").write_text("a file")


def make_partial(folder):
    shutil.copytree(folder / "3", folder / "9")
    (folder / "9" / MANIFEST).unlink()
    shutil.rmtree(folder / "9" / "default")


def make_copy(folder):
    shutil.copytree(folder / "3", folder / "9")


def make_link(folder):
    (folder / "9").symlink_to(folder / "3")


def make_sealed_copy(folder):
    make_copy(folder)
    write_manifest(folder / "9", 9)


def make_traversal(folder):
    make_copy(folder)
    (folder.parent / "outside").write_text("x")
    text = json.loads((folder / "9" / MANIFEST).read_text())
    rewrite(folder / "9", 9, text["files"] | {"../../outside": {"size": 1, "sha256": "0"}})


def make_absolute(folder):
    make_copy(folder)
    rewrite(folder / "9", 9, {"/etc/passwd": {"size": 1, "sha256": "0"}})


def rewrite(folder, step, sums):
    """A manifest that is as somebody who means harm would write it."""
    (folder / MANIFEST).write_text(manifest._text(step, sums))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_empty, "its folder is empty"),
        (make_file, "is not a folder"),
        (make_partial, "it has no manifest.json, so it was not saved to its end"),
        (make_copy, "it is a copy of step 3"),
        (make_sealed_copy, "it is a copy of step 3"),
        (make_link, "is a symbolic link"),
        (make_traversal, "names ../../outside, which is outside of"),
        (make_absolute, "names /etc/passwd, which is outside of"),
    ],
)
def test_a_folder_that_is_no_step_is_skipped_with_its_reason(run, make, words, caplog):
    make(run / "checkpoints")
    assert_is_step(restored(run), 3)
    assert "step 9" in caplog.text and words in caplog.text and "using step 3" in caplog.text
    assert (run / "unusable" / "9").exists()
    assert_is_step(restored(run), 3)
    make(run / "checkpoints")
    assert_is_step(restored(run), 3)
    assert (run / "unusable" / "9.2").exists()  # what is set aside is never written over


def test_stray_files_and_folders_are_no_steps(run, caplog):
    folder = run / "checkpoints"
    (folder / "10").write_text("a file")
    (folder / "notes.txt").write_text("mine")
    (folder / "best").mkdir()
    (folder / "04").mkdir()
    (folder / "11.orbax-checkpoint-tmp-123").mkdir()
    (folder / "3" / "core.1234").write_text("stray")
    assert_is_step(restored(run), 3)
    assert "files that are not in its manifest are ignored" in caplog.text and "core.1234" in caplog.text


def test_a_file_in_the_place_of_an_old_step_does_not_keep_a_run_from_saving(tmp_path):
    (tmp_path / "0").write_text("a file")
    checkpoints = Checkpoints(tmp_path, Keep(newest=1))
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    assert verify(tmp_path / "2").status == "verified"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2"]


@pytest.mark.slow
def test_a_hundred_random_mutations_are_all_found(three_steps, tmp_path):
    """One to three changes of the newest step: whatever is chosen then, each of its files is what was saved."""
    source = three_steps / "checkpoints"
    whole = {name: (source / "3" / name).read_bytes() for name in files_of(source / "3")}
    for seed in range(100):
        chance, copy = random.Random(seed), tmp_path / "copy"
        shutil.copytree(source, copy)
        for _ in range(chance.randint(1, 3)):
            files = [copy / "3" / name for name in files_of(copy / "3") if (copy / "3" / name).stat().st_size]
            mutate(chance, chance.choice(files), copy)
        now = {name: (copy / "3" / name).read_bytes() for name in files_of(copy / "3") if not is_link(copy / "3", name)}
        found = find_candidate(copy, early=False)
        same = whole.items() <= now.items()
        assert found.step == (3 if same else 2), seed
        shutil.rmtree(copy)


def is_link(folder, name):
    return any((folder / Path(*name.parts[: count + 1])).is_symlink() for count in range(len(name.parts)))


def mutate(chance, file, copy):
    size = file.stat().st_size
    what = chance.choice(["flip", "truncate", "delete", "grow", "swap", "zero", "stray", "other step"])
    if what == "flip":
        flip(file, chance.randrange(size))
    elif what == "truncate":
        os.truncate(file, chance.randrange(size))
    elif what == "delete":
        file.unlink()
    elif what == "grow":
        file.write_bytes(file.read_bytes() + chance.randbytes(chance.randint(1, 99)))
    elif what == "swap":
        content = bytearray(file.read_bytes())
        chance.shuffle(content)
        file.write_bytes(content)
    elif what == "zero":
        file.write_bytes(bytes(size))
    elif what == "stray":
        (file.parent / f"stray{chance.random()}").write_text("x")
    else:
        before = copy / "2" / file.relative_to(copy / "3")
        shutil.copy(before if before.is_file() else copy / "2" / MANIFEST, file)


def test_a_save_that_was_killed_before_its_manifest_is_not_taken_for_a_step(run, monkeypatch):
    def killed(*_):
        raise OSError("killed")

    monkeypatch.setattr(checkpoint, "write_manifest", killed)
    checkpoints = Checkpoints(run / "checkpoints", KEEP)
    checkpoints.save(4, state_of(4))
    with pytest.raises(OSError, match="killed"):
        checkpoints.close()
    assert {step.name for step in (run / "checkpoints").iterdir()} == set("1234")  # none was deleted for it
    monkeypatch.undo()
    assert_is_step(restored(run), 3)


def test_the_interrupted_save_of_the_first_step_leaves_a_run_that_begins_again(run, caplog):
    shutil.rmtree(run / "checkpoints" / "2")
    shutil.rmtree(run / "checkpoints" / "3")
    (run / "checkpoints" / "1" / MANIFEST).unlink()
    assert restored(run) is None
    assert "step 1 is moved to" in caplog.text


def test_weights_that_are_not_finite_are_not_restored(run, caplog):
    checkpoints = Checkpoints(run / "checkpoints", KEEP)
    checkpoints.save(4, state_of(4, factor=np.inf))
    checkpoints.close()
    assert_is_step(restored(run), 3)
    assert "its weights are not finite numbers" in caplog.text


def test_moments_of_another_type_are_refused_with_a_list_or_converted_if_allowed(run):
    like = state_of(0, dtype=jnp.bfloat16)
    words = r"opt_state/mu: saved float32 \(16, 32\), now bfloat16 \(16, 32\)\).*--allow-changes"
    with pytest.raises(OtherArraysError, match=words):
        restored(run, like=like)
    state = restored(run, like=like, convert=True)
    assert state is not None and state.opt_state["mu"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(state.params["layer"]["up_DF"], state_of(3).params["layer"]["up_DF"])


def test_another_model_or_optimiser_is_refused_even_if_changes_are_allowed(run):
    like = state_of(0)
    other = TrainState(like.step, {"layer": {"up_DF": jnp.zeros((16, 8))}}, {"count": like.step, "nu_D": jnp.ones(2)})
    for convert in (False, True):
        with pytest.raises(OtherArraysError) as raised:
            restored(run, like=other, convert=convert)
        for words in ("params/layer/up_DF: saved float32 (16, 32), now float32 (16, 8)", "saved from another model"):
            assert words in str(raised.value)


def test_a_run_of_a_version_without_manifests_is_restored_and_gets_one(run, caplog):
    for step in "123":
        (run / "checkpoints" / step / MANIFEST).unlink()
    assert_is_step(restored(run, early=True), 3)
    assert "saved without sums of its files, so it cannot be verified" in caplog.text
    assert verify(run / "checkpoints" / "3").status == "verified"
    shutil.rmtree(run / "checkpoints" / "3" / "default" / "d")
    assert restored_error(run, early=False).startswith("No checkpoint in")


def restored_error(run, early):
    with pytest.raises(ValueError) as raised:
        restored(run, early=early)
    return str(raised.value)


def test_an_early_step_that_cannot_be_read_is_skipped_for_the_one_before(run, caplog):
    for step in "123":
        (run / "checkpoints" / step / MANIFEST).unlink()
    os.truncate(run / "checkpoints" / "3" / "default" / "_METADATA", 20)
    assert_is_step(restored(run, early=True), 2)
    assert "step 3 cannot be used (it cannot be read" in caplog.text


def test_the_newest_the_best_and_every_so_many_steps_stay():
    assert Keep(2).of([1, 2, 3, 4]) == {3, 4}
    assert Keep(1, every=4).of([2, 4, 6, 8, 10]) == {4, 8, 10}
    assert Keep(1).of([2, 4, 6], best=2) == {2, 6}
    assert Keep(1).of([2, 4, 6], best=5) == {6}  # a step that was not saved cannot stay


def test_steps_are_deleted_only_when_newer_ones_have_their_manifest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1, every=2))
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(step, state_of(step), best=1)
    checkpoints.close()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["1", "2", "4", "5"]
    assert all(verify(tmp_path / "checkpoints" / step).status == "verified" for step in kept)


# The commands.


def test_a_whole_run_is_listed_and_verified_with_status_0(run, capsys):
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "1", "2", "3"] and "complete" in lines[3]
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count("verified") == 3


def test_a_flipped_bit_of_the_newest_step_is_named_with_status_1(run, capsys):
    (file,) = [name for name in files_of(run / "checkpoints" / "3") if name.name == "_METADATA"]
    flip(run / "checkpoints" / "3" / file, 3)
    assert main(["checkpoint", "verify", str(run)]) == 1
    assert f"damaged: file {file} has other contents" in capsys.readouterr().out.splitlines()[3]
    assert main(["checkpoint", "list", str(run)]) == 0  # looks at names and sizes only
    assert list_step(run / "checkpoints" / "3").status == "complete"


def test_a_damaged_older_step_is_shown_and_the_status_is_that_of_the_newest(run, capsys):
    (run / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert "damaged: file _CHECKPOINT_METADATA is missing" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys):
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} has no folder of checkpoints; give the directory of a run.\n"
    (tmp_path / "checkpoints").mkdir()
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0


def test_checkpoints_are_listed_without_jax(run):
    """Reading names and sums needs no device, which another process may hold."""
    code = "import sys; from grpo_jax.cli import main; main(['checkpoint', 'verify', sys.argv[1]])"
    code += "; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
