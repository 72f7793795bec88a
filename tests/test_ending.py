"""However a run ends, its last whole step is saved, what is printed is a sentence, and the exit code says why."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX

from grpo_jax import RunDirectory
from grpo_jax.cli import main, parser_for
from grpo_jax.hosts import codes, signals
from grpo_jax.hosts.telling import tell
from grpo_jax.rewards import Example, score
from grpo_jax.structs import TrainState
from grpo_jax.training import held_out, loop, opening
from grpo_jax.training.checkpoint import Checkpoints, Keep
from grpo_jax.training.ending import Whole, save_whole, writing

pytestmark = pytest.mark.faults
DOCS = Path(__file__).parent.parent / "docs"
# The reward does what a test asks of it in the step that the test says, or in the evaluation "after" a step.
MINE = """
DO = {}

def reward(prompts, completions, trainer_state=None, **columns):
    done = None if trainer_state is None else trainer_state.global_step
    what = DO.get(None if done is None else done + 1 if len(completions) == 16 else f"after {done}")
    if what is not None:
        what()
    return [float(len(response[0]["content"]) % 2) for response in completions]

def surrogate(tokens):
    if DO.get("surrogate"):
        DO["surrogate"]()
    return tokens.advantages_PGT * tokens.log_ratio_PGT
"""
CONFIG = """
run: {name: t}
model: {name: tiny, remat: none}
task: {use: arithmetic, train: 32, held_out: 8, largest: 9}
rewards: [{use: "asked:reward"}]
rollout: {responses: 4, max_tokens: 6}
objective: {use: dr_grpo}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: 2, tensor: 4}
train: {steps: 4, prompts: 4, evaluate_every: 2, save_every: 50, keep: 1, max_prompt_tokens: 96}
"""
TRAIN = [sys.executable, "-m", "grpo_jax", "train", "c.yaml"]


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise KeyError("no such column")


class SwallowsIt:
    """Ctrl-C inside a destructor: Python prints the KeyboardInterrupt, and drops it."""

    def __del__(self):
        interrupt()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "asked.py").write_text(MINE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    yield tmp_path
    sys.modules.pop("asked", None)


@pytest.fixture
def train(folder):
    """Trains with a reward that does as it is asked in the steps that are given."""
    import asked

    def run(do, *arguments):
        asked.DO.clear()
        asked.DO.update(do)
        return main(["train", "c.yaml", *arguments])

    return run


def saved(name="t") -> list[str]:
    return sorted(path.name for path in Path("runs", name, "checkpoints").iterdir() if path.name.isdigit())


def steps(name="t") -> list[int]:
    return [row["step"] for row in RunDirectory(Path("runs", name)).metrics()]


def without_times(name):
    rows = RunDirectory(Path("runs", name)).metrics()
    return [{key: value for key, value in row.items() if "time" not in key} for row in rows]


# Errors of the user's code.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words", "frame"),
    [
        (fail, "KeyError: 'no such column'", "in fail"),
        (sys.exit, "SystemExit", "in reward"),
        (lambda: os._exit(0), r"os\._exit\(0\)", None),
    ],
    ids=["exception", "sys.exit", "os._exit"],
)
def test_a_reward_that_fails_ends_the_run_with_the_step_before_saved(train, capsys, what, words, frame):
    assert train({3: what}) == codes.STEP_FAILED == 70
    said = capsys.readouterr().err
    assert re.search(
        rf"\nerror: Reward reward failed .*{words}.*step 2 is saved: go on from it with --resume\n$", "\n" + said
    )
    assert "Traceback" not in said and "grpo_jax" not in said.replace("asked", "").partition("error: ")[0]
    assert frame is None or frame in said
    assert saved() == ["2"] and steps() == [0, 1, 2]
    assert train({}, "--resume") == codes.COMPLETE
    assert train({}, "run.name=whole") == codes.COMPLETE
    assert without_times("t") == without_times("whole")


def test_a_reward_that_exits_before_the_first_step_is_a_mistake(train, capsys):
    assert train({"after 0": lambda: sys.exit(0)}) == codes.MISTAKE
    assert capsys.readouterr().err.startswith("error: Reward reward failed")


@pytest.mark.slow
def test_a_reward_that_fails_in_an_evaluation_loses_no_step(train, capsys):
    assert train({"after 2": fail}) == codes.STEP_FAILED
    assert "step 2 is saved: go on from it with --resume" in capsys.readouterr().err
    assert saved() == ["2"] and steps() == [0, 1, 2]


def test_a_module_that_exits_when_it_is_imported_is_a_mistake(folder, capsys):
    (folder / "asked.py").write_text("import sys\nsys.exit(0)\n")
    assert main(["train", "c.yaml"]) == codes.MISTAKE
    assert "asked.py:2: SystemExit: 0; correct it there" in capsys.readouterr().err


def test_an_objective_that_fails_in_its_first_step_is_told_with_the_users_lines(train, capsys):
    assert train({"surrogate": fail}, "objective.surrogate=asked:surrogate") in (codes.STEP_FAILED, codes.MISTAKE)
    assert "KeyError: 'no such column'" in capsys.readouterr().err


def test_only_the_thread_of_a_reward_is_kept_from_ending_the_process():
    """A child that a reward forks ends with the status that it asks for."""
    statuses = []

    def forks(example, response):
        child = subprocess.run([sys.executable, "-c", "import os; os._exit(3)"], check=False)
        statuses.append(child.returncode)
        return 0.0

    before = os._exit
    score(forks, [Example("q")], [["a"]])
    assert statuses == [3] and os._exit is before
    with signals.exits_refused(), pytest.raises(signals.CalledExit):
        os._exit(0)


def test_an_error_of_this_library_is_shown_whole(capsys):
    for error, whole in ((TypeError("odd"), True), (codes.RunError("A sentence.", 65), False)):
        try:
            raise error
        except Exception as caught:
            caught.__traceback__ = None
            code, text = tell(caught, otherwise=70)
        said = capsys.readouterr().err
        assert (code, text) == ((70, "TypeError: odd") if whole else (65, "A sentence."))
        assert said.endswith(f"error: {text}\n") and said.startswith("TypeError: odd" if whole else "error:")


# Signals.


@pytest.mark.slow
def test_ctrl_c_while_scoring_leaves_the_step_and_saves_the_one_before(train, capsys):
    assert train({3: interrupt}) == codes.INTERRUPTED == 130
    assert "stopped; step 2 is saved: go on from it with --resume" in capsys.readouterr().err
    assert saved() == ["2"] and steps() == [0, 1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_during_an_update_waits_for_the_end_of_the_step(train, monkeypatch, capsys):
    known = loop.update

    def update(algorithm, state, *rest):
        if int(state.step) == 2:
            interrupt()
        return known(algorithm, state, *rest)

    monkeypatch.setattr(loop, "update", update)
    assert train({}) == codes.INTERRUPTED
    said = capsys.readouterr().err
    assert "Ctrl-C again ends at once" in said and "stopped; step 3 is saved" in said
    assert saved() == ["3"] and steps() == [0, 1, 2, 3]


@pytest.mark.slow
def test_an_evaluation_that_is_interrupted_is_made_up_for_when_the_run_goes_on(train, monkeypatch):
    assert train({}, "run.name=whole") == codes.COMPLETE
    known = held_out.evaluate_questions

    def interrupted(algorithm, questions, params, step, *others):
        if step == 2:
            interrupt()
        return known(algorithm, questions, params, step, *others)

    monkeypatch.setattr(held_out, "evaluate_questions", interrupted)
    assert train({}) == codes.INTERRUPTED
    assert saved() == ["2"] and "eval/reward" not in without_times("t")[-1]
    monkeypatch.undo()
    monkeypatch.chdir(Path(sys.modules["asked"].__file__).parent)  # what was undone had changed to it, too
    assert train({}, "--resume") == codes.COMPLETE
    assert without_times("t") == without_times("whole")


def test_ctrl_c_that_python_swallows_while_a_run_loads_is_not_lost(train, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    known = opening.first_state

    def first_state(session):
        SwallowsIt()
        return known(session)

    monkeypatch.setattr(opening, "first_state", first_state)
    assert train({}) == codes.INTERRUPTED
    assert not Path("runs").exists()
    assert "interrupted" in capsys.readouterr().err


def test_a_step_that_swallows_ctrl_c_is_the_last(train, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    assert train({2: SwallowsIt}) == codes.INTERRUPTED
    assert saved() == ["2"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_save_after_the_step_and_can_be_resumed(train, capsys, sent):
    before = signal.getsignal(sent)
    assert train({2: lambda: signal.raise_signal(sent)}) == codes.RESUMABLE == 75
    assert "told to stop: go on with --resume" in capsys.readouterr().out
    assert saved() == ["2"] and signal.getsignal(sent) == before


def test_a_signal_that_is_ignored_stays_so(train):
    """As under nohup, or in a job that a script has put into the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train({2: lambda: signal.raise_signal(signal.SIGHUP)}, "train.steps=3") == codes.COMPLETE
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_to_a_child_that_a_reward_forks_end_the_child_and_not_the_run():
    program = """
import os, signal, time
from grpo_jax.hosts.signals import end_at_second, take_over
take_over(signal.SIGTERM, lambda *_: print("noted", flush=True))
close = end_at_second((signal.SIGTERM,))
for _ in range(2):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
os.kill(os.getpid(), signal.SIGTERM)
close()
print("goes on")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "noted\ngoes on\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_process_only_after_its_temporary_folder_is_gone(sent, tmp_path):
    program = f"""
import signal, tempfile
from grpo_jax.hosts.signals import left_by_signals
with left_by_signals(), tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
    signal.raise_signal({int(sent)})
"""
    result = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-sent, "") and not list(tmp_path.iterdir())


# What cannot be written.


def test_a_full_disk_while_saving_is_a_sentence_and_the_older_checkpoint_stays(train, monkeypatch, capsys):
    known = Checkpoints.save

    def save(self, step, state, *rest):
        if step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return known(self, step, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert train({}, "train.save_every=2") == codes.NOT_WRITTEN == 74
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.match(
        r"error: The checkpoint of step 4 could not be written to .*, where \S+ GB are free, and this takes", said
    )
    assert "No space left on device" in said and "step 2 is saved: go on from it with --resume" in said
    assert saved() == ["2"]


@pytest.mark.parametrize(
    ("weight", "usable", "words", "kept"),
    [
        (1.0, True, "step 7 is saved: go on", [7]),
        (
            np.nan,
            True,
            "Step 7 could not be saved: step 7 is not saved, because its weights are not finite numbers",
            [],
        ),
        (1.0, False, "The weights of step 7 are of no use, so they are not saved; nothing is saved yet", []),
    ],
    ids=["good", "not finite", "of no use"],
)
def test_weights_that_are_worth_nothing_do_not_push_out_a_checkpoint(tmp_path, weight, usable, words, kept):
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1))
    state = TrainState(jnp.array(7), {"a_D": jnp.full(4, weight)}, {})
    assert save_whole(Whole(state, 7, usable), checkpoints, None).startswith(words)
    assert checkpoints.manager.all_steps() == kept
    checkpoints.close()


def test_a_state_that_an_update_has_taken_is_said_to_be_lost(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", Keep(1))
    state = TrainState(jnp.array(7), {"a_D": jnp.ones(4)}, {})
    state.params["a_D"].delete()
    assert save_whole(Whole(state, 7), checkpoints, None).startswith("Step 7 is lost")
    checkpoints.close()


def test_a_long_error_of_a_library_is_told_by_what_the_system_said(tmp_path):
    long = f'OUT_OF_RANGE: Error writing "a/0" in {"x" * 500}: {os.strerror(errno.ENOSPC)} [os_error_code]\nmore'
    with pytest.raises(codes.RunError, match=r"2\.5 GB \(No space left on device\)\. Make room") as raised:
        with writing("A checkpoint", tmp_path / "not" / "there", 2_500_000_000):
            raise ValueError(long)
    assert raised.value.code == codes.NOT_WRITTEN


def test_answers_that_cannot_be_written_end_the_run_before_their_update(train, monkeypatch, capsys):
    def block():
        Path("runs/t/completions/step_000003.jsonl").mkdir()

    assert train({3: block}) == codes.NOT_WRITTEN
    assert re.match(r"error: The answers could not be written to .*runs/t, where", capsys.readouterr().err)
    assert saved() == ["2"] and steps() == [0, 1, 2]


def test_tensorboard_that_fails_is_one_warning_and_the_run_goes_on(train, monkeypatch, capsys):
    class Full(tensorboardX.SummaryWriter):
        def add_scalar(self, *arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Full)
    assert train({}) == codes.COMPLETE
    said = capsys.readouterr().err
    assert said.count("warning: tracker tensorboard") == 1 and "No space left on device" in said
    assert "tracker tensorboard: 5 of 5 step(s) did not reach it" in said
    assert steps() == [0, 1, 2, 3, 4]


# The table of exit codes.


def test_the_docs_and_the_help_have_every_exit_code_with_its_meaning(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # or the help breaks lines
    constants = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)}
    assert constants == set(codes.MEANINGS)
    page = (DOCS / "training.md").read_text()
    for code, meaning in codes.MEANINGS.items():
        assert f"| {code} | {meaning} |" in page
    subparser = parser_for(["train"])._subparsers._group_actions[0].choices["train"]
    assert codes.table() in subparser.format_help()


# Processes: what only a process of its own can show.


def environment() -> dict[str, str]:
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parent.parent / ".pytest_cache" / "xla" / "processes")}
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(DOCS.parent)} | cache


def started(folder: Path, *arguments: str, reward: str = MINE, **options) -> subprocess.Popen:
    (folder / "asked.py").write_text(reward)
    with (folder / "out").open("w") as output:
        streams = {"stdout": output, "stderr": output} | options
        return subprocess.Popen([*TRAIN, *arguments], cwd=folder, env=environment(), **streams)


def wait_for(folder: Path, text: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while text not in (folder / "out").read_text():
        assert time.monotonic() < end, (folder / "out").read_text()[-2000:]
        time.sleep(0.05)


HANGS = """
import asyncio, time

async def reward(prompts, completions, trainer_state=None, **columns):
    if trainer_state is not None and trainer_state.global_step == 1:
        print("hangs", flush=True)
        await asyncio.sleep(600)
    return [float(len(response[0]["content"]) % 2) for response in completions]
"""


@pytest.mark.long
@pytest.mark.slow
def test_ctrl_c_ends_a_run_within_seconds_while_an_async_reward_hangs(folder):
    run = started(folder, reward=HANGS)
    wait_for(folder, "hangs")
    begun = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == codes.INTERRUPTED
    assert time.monotonic() - begun < 10  # three seconds, and what a loaded machine adds
    assert saved() == ["1"] and "stopped; step 1 is saved" in (folder / "out").read_text()


@pytest.mark.slow
def test_sigterm_waits_for_no_reward_that_hangs(folder):
    waits = HANGS.replace("await asyncio.sleep(600)", "time.sleep(600)").replace("async def", "def")
    run = started(folder, "algorithm.reward_seconds=null", reward=waits)
    wait_for(folder, "hangs")
    begun = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == codes.RESUMABLE
    assert time.monotonic() - begun < 20  # deadline.PATIENCE, and what a loaded machine adds
    text = (folder / "out").read_text()
    assert saved() == ["1"] and "inside of a reward that does not return" in text and "step 1 is saved" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_at_once_even_inside_a_long_call(folder, number):
    """The call holds the main thread in C, where Python runs no handler: as long programs of JAX do."""
    program = """
import hashlib
from grpo_jax.hosts import ending
stop = ending.StopSignal()
stop.catch_interrupts()
print("calls", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    with (folder / "out").open("w") as output:
        run = subprocess.Popen([sys.executable, "-c", program], cwd=folder, env=environment(), stdout=output)
    wait_for(folder, "calls")
    run.send_signal(number)
    time.sleep(0.3)
    assert run.poll() is None
    run.send_signal(number)
    assert run.wait(5) == 128 + number


@pytest.mark.slow
def test_a_closed_pipe_or_terminal_saves_and_ends(folder):
    reader, writer = os.pipe()
    run = started(folder, "train.steps=1000", stdout=writer)
    os.close(writer)
    os.read(reader, 10)
    end = time.monotonic() + 120
    while not Path("runs/t/metrics.jsonl").exists() or not steps():
        assert time.monotonic() < end
        time.sleep(0.1)
    os.close(reader)
    assert run.wait(120) == codes.RESUMABLE
    assert saved() == [str(steps()[-1])]
    assert "Traceback" not in (folder / "out").read_text() and "BrokenPipe" not in (folder / "out").read_text()
