"""Runs on several hosts; several processes on this machine, with one to eight CPU devices each, stand in for them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import grpo_jax as gj
from grpo_jax.config import build, read
from grpo_jax.devices.mesh import Layout, check_hosts
from grpo_jax.devices.placing import from_hosts, prompts_of_host, values_of_host
from grpo_jax.evaluation.answering import evaluate_questions
from grpo_jax.hosts import codes, ending, meeting, store
from grpo_jax.models import tiny
from grpo_jax.rewards import Mix
from grpo_jax.structs import Prompts
from grpo_jax.tasks import arithmetic
from grpo_jax.training.session import assemble, first_state

pytestmark = [pytest.mark.slow, pytest.mark.faults]  # starts processes

REWARDS = """
import time
from concurrent.futures import ThreadPoolExecutor

def evens(example, response):
    return sum(ord(letter) % 2 == 0 for letter in response) / 10

def slow(example, response):
    time.sleep(0.02)
    return evens(example, response)

slow.said = lambda response: response[:1] or None
scored = 0

def hangs_on_second(example, response):
    import jax
    global scored
    scored += 1
    if jax.process_index() == 1 and scored > 12:
        print("hangs", flush=True)
        time.sleep(600)
    return evens(example, response)

def broken_on_second(example, response):
    import jax
    global scored
    scored += 1
    if jax.process_index() == 1 and scored > 12:  # 8 in each step, and few before
        raise RuntimeError("no more disk")
    return evens(example, response)

class Asks:
    def reset(self, example, seed):
        self.seed = seed
        return [{"role": "user", "content": str(seed % 10)}]

    def step(self, reply):
        from grpo_jax.environments import Turn
        said = reply["content"]
        time.sleep(len(said) % 3 * 0.05)
        return Turn([{"role": "user", "content": f"{said[:2]} {self.seed % 7}"}], reward=float(len(said) % 4))
"""
# All that hosts have to agree on: several rounds of sampling, prompts that wait, a reference policy, minibatches.
CONFIG = """
run: {name: t}
model: {name: tiny}
task: {use: arithmetic, operations: "+", largest: 9, train: 64, held_out: 16}
rewards: [{use: "my_rewards:evens"}]
rollout: {responses: 4, max_tokens: 10, at_once: 8}
objective: {use: grpo, kl: {estimator: k3, coefficient: 0.05}}
algorithm: {minibatches: 2}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: -1}
train: {steps: 4, prompts: 16, evaluate_every: 2, save_every: 2, evaluate_prompts: 16, resample: 2, retire: 0.9}
"""
# A config with little to compile, and with more steps than a test waits for.
SMALL = """
run: {name: t}
model: {name: tiny}
task: {use: arithmetic, operations: "+", largest: 9, train: 16, held_out: 8}
rewards: [{use: "my_rewards:slow"}]
rollout: {responses: 2, max_tokens: 4}
mesh: {data: 1, fsdp: -1}
train: {steps: 10000, prompts: 8, evaluate_every: 0, save_every: 10000}
"""
# Conversations, which each host has about its own prompts.
TALKS = """
run: {name: t}
model: {name: tiny}
task: {use: arithmetic, operations: "+", largest: 9, train: 16, held_out: 8}
environment: {name: "my_rewards:Asks", turns: 3, workers: 2}
rewards: [environment, {use: "my_rewards:evens"}]
rollout: {responses: 4, max_tokens: 64}
optimizer: {learning_rate: 1e-3, warmup_steps: 1}
mesh: {data: 1, fsdp: -1}
train: {steps: 2, prompts: 8, evaluate_every: 2, save_every: 2}
"""
SIXTEEN = ("mesh.tensor=2", "rollout.at_once=null")


TRAIN = ("-m", "grpo_jax", "train", "config.yaml")
# A program in which hosts exchange all that they exchange before a step, without the step.
EXCHANGE = """
import os
import signal
from pathlib import Path
from grpo_jax.hosts import ending, meeting, store

def check(refuse, *arguments):
    try:
        refuse(*arguments)
        print("accepted", flush=True)
    except ValueError as error:
        print(error, flush=True)

meeting.join()
own = os.environ["JAX_PROCESS_ID"]
print(len(store.gather("long" * 5000)[1]), store.gather(own), store.decide(lambda: f"chosen by {own}"))
check(meeting.check_same, {"config": "same", "version of the code": own})
Path(own).mkdir()
check(meeting.check_shared_directory, Path(own).absolute())
check(meeting.check_shared_directory, Path(".").absolute())
stop = ending.StopSignal()
stop.catch_interrupts()
with ending.end_all_hosts_on_error():
    if own == "0":
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
        signal.raise_signal(signal.SIGINT)
    store.gather("the first host never gets here")
"""


def environment(processes: int, devices: int) -> dict[str, str]:
    """The environment in which so many processes on this machine, with so many devices each, find each other."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return variables | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}


def launch(folder: Path, index: int, variables: dict[str, str], *command: str) -> subprocess.Popen:
    """Starts the process of this index; its output goes to a file."""
    variables = variables | {"JAX_PROCESS_ID": str(index)}
    with (folder / f"out.{index}").open("w") as output:
        return subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT
        )


def fill(folder: Path, config: str) -> Path:
    """Writes the files that a run starts from into a folder, and returns the folder."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "config.yaml").write_text(config)
    return folder


def start(folder: Path, processes: int, devices: int, *arguments: str, config: str = CONFIG) -> list[subprocess.Popen]:
    """Starts `grpo-jax train` in so many processes."""
    fill(folder, config)
    variables = environment(processes, devices)
    if processes == 1:
        del variables["JAX_COORDINATOR_ADDRESS"], variables["JAX_NUM_PROCESSES"]
    return [launch(folder, index, variables, *TRAIN, *arguments) for index in range(processes)]


def finish(started: list[subprocess.Popen], seconds: int = 240) -> list[int]:
    """Waits for all processes to end, and returns their exit codes."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def train(folder: Path, processes: int, devices: int, *arguments: str, config: str = CONFIG) -> Path:
    """Runs `grpo-jax train` to a good end, and returns the directory of the run."""
    ended = finish(start(folder, processes, devices, *arguments, config=config))
    assert ended == [0] * processes, said(folder, ended.index(next(filter(None, ended))))[-3000:]
    return folder / "runs" / "t"


def said(folder: Path, index: int = 0) -> str:
    """The output so far of the process of this index."""
    return (folder / f"out.{index}").read_text()


def wait_for(folder: Path, text: str, seconds: int = 120, index: int = 0) -> None:
    """Waits until the process of this index has printed a text."""
    end = time.monotonic() + seconds
    while text not in said(folder, index):
        assert time.monotonic() < end, said(folder, index)[-3000:]
        time.sleep(0.2)


def metrics(run: Path) -> list[dict[str, float]]:
    """The metrics of a run, without those that depend on the clock or on the sizes that each process compiles for."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    other = ("sampling/programs", "environment/seconds")
    return [{k: v for k, v in row.items() if "time" not in k and k not in other} for row in rows]


def answers(run: Path) -> list[list[tuple]]:
    """The prompts, responses and rewards of each step and evaluation, whichever host recorded them."""
    steps: dict[str, list] = {}
    for file in sorted((run / "completions").iterdir()):
        rows = map(json.loads, file.read_text().removesuffix("\n").split("\n"))  # texts may have other separators
        told = [(json.dumps(row["prompt"]), row["completion"], round(row["rewards/evens"], 4)) for row in rows]
        steps.setdefault(re.match(r"(step|held_out)_\d+", file.name)[0], []).extend(told)
    return [sorted(rows) for rows in steps.values()]


def weights(run: Path, step: int) -> list[np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        path = (run / "checkpoints" / str(step) / "default").absolute()
        whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), reader.metadata(path).item_metadata.tree
        )
        return [np.asarray(a) for a in jax.tree.leaves(reader.restore(path, shapes))]


def assert_same_run(one: Path, other: Path, steps: int = 4) -> None:
    assert answers(one) == answers(other)
    ours, theirs = metrics(one), metrics(other)
    assert len(ours) == len(theirs) == steps + 1
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(*(np.float64(x[name]) for x in (a, b)), rtol=2e-3, atol=1e-5, err_msg=name)
    for a, b in zip(weights(one, steps), weights(other, steps), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("alone"), 1, 8)


def test_multi_process_a_run_of_two_processes_equals_the_run_of_one(alone, tmp_path):
    run = train(tmp_path, 2, 4)
    assert_same_run(alone, run)
    assert len(list((run / "completions").iterdir())) == 14  # each host recorded its own, of 4 steps and 3 evaluations
    assert "reward" in said(tmp_path, 0) and "reward" not in said(tmp_path, 1)  # the first host alone prints


@pytest.mark.long
def test_multi_process_given_answers_are_learned_by_two_processes_as_by_one(tmp_path):
    runs = []
    for processes, devices in ((1, 4), (2, 2)):
        folder, variables = fill(tmp_path / str(processes), CONFIG), environment(processes, devices)
        if processes == 1:
            del variables["JAX_COORDINATOR_ADDRESS"], variables["JAX_NUM_PROCESSES"]
        command = ("-m", "grpo_jax", "sft", "config.yaml")
        ended = finish([launch(folder, host, variables, *command) for host in range(processes)])
        assert ended == [0] * processes, said(folder)[-3000:]
        runs.append(folder / "runs" / "t")
    assert_same_run(*runs)
    assert "eval/loss" in metrics(runs[0])[-1]


@pytest.mark.long
def test_multi_process_conversations_of_two_processes_are_those_of_one(tmp_path):
    runs = [train(tmp_path / str(processes), processes, 4 // processes, config=TALKS) for processes in (1, 2)]
    assert_same_run(*runs, steps=2)
    assert metrics(runs[0])[-1]["environment/turns"] > 1.1


@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.lora={rank: 4}", "optimizer.learning_rate=1e-2"],
        ["model.lora={rank: 4}", "model.weights=int8", "optimizer.learning_rate=1e-2"],
        ["algorithm.gradients=by_layer"],
    ],
    ids=["adapters", "adapters of an int8 base", "gradients by layer"],
)
def test_multi_process_what_saves_memory_leads_two_processes_where_it_leads_one(overrides, tmp_path):
    runs = [train(tmp_path / str(processes), processes, 4 // processes, *overrides) for processes in (1, 2)]
    assert_same_run(*runs)


@pytest.mark.long
def test_multi_process_an_evaluation_of_two_processes_equals_that_of_one_and_replaces_its_answers(tmp_path):
    """Ten prompts in two calls; each asks some of them again, as eight fill the devices."""
    fill(tmp_path, SMALL)
    settings = ("evaluation.responses=4", "evaluation.responses_at_once=24", "task.held_out=10")
    arguments = ("-m", "grpo_jax", "eval", "config.yaml", *settings, "--out", "completions", "--json")
    found = []
    for processes, devices in ((1, 4), (2, 2)):
        variables = environment(processes, devices)
        if processes == 1:
            del variables["JAX_COORDINATOR_ADDRESS"], variables["JAX_NUM_PROCESSES"]
        ended = finish([launch(tmp_path, host, variables, *arguments) for host in range(processes)])
        assert ended == [0] * processes, said(tmp_path)[-3000:]
        rows = sorted(gj.RunDirectory(tmp_path).held_out(0), key=lambda row: json.dumps(row["prompt"]))
        text = said(tmp_path)  # with what went to standard error
        found.append((rows, json.JSONDecoder().raw_decode(text, text.index("[\n {"))[0]))
    assert found[0] == found[1] and len(found[0][0]) == 40
    assert {"pass@4", "maj@4", "reward/low"} <= found[0][1][0]["models"][0]["metrics"].keys()
    names = sorted(file.name for file in (tmp_path / "completions").iterdir())
    assert names == ["held_out_000000.host_0.jsonl", "held_out_000000.host_1.jsonl"]


EXPORT = """
import grpo_jax as gj
from grpo_jax.hosts import meeting

meeting.join()
model = gj.load("tiny")
gj.export(model, model.params(gj.Layout(data=1, fsdp=-1).mesh()), "out", shard_bytes=100_000)
"""


def test_multi_process_an_export_of_two_processes_is_that_of_one_and_the_first_writes_it(tmp_path):
    model = gj.load("tiny")
    alone = gj.export(model, model.params(gj.Layout().mesh(jax.devices()[:1])), tmp_path / "alone", shard_bytes=100_000)
    variables = environment(2, 2)
    for index in range(2):
        (tmp_path / str(index)).mkdir()
    started = [launch(tmp_path / str(index), index, variables, "-c", EXPORT) for index in range(2)]
    assert finish(started) == [0, 0], said(tmp_path / "1", 1)[-3000:]
    assert not (tmp_path / "1" / "out").exists()
    found = {file.name: file.read_bytes() for file in (tmp_path / "0" / "out").iterdir()}
    assert found == {file.name: file.read_bytes() for file in alone.iterdir()}


@pytest.mark.long
def test_multi_process_a_run_of_four_processes_resumed_by_two_equals_the_run_of_one(alone, tmp_path):
    """Four hosts with sixteen devices take two steps; two hosts go on from their checkpoint."""
    train(tmp_path, 4, 4, *SIXTEEN, "train.steps=2")
    train(tmp_path, 2, 8, *SIXTEEN, "--resume")
    assert_same_run(alone, tmp_path / "runs" / "t")


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_multi_process_after_a_signal_to_one_host_both_save_the_same_step(tmp_path, sent):
    both = start(tmp_path, 2, 4, config=SMALL)
    wait_for(tmp_path, "grad")
    both[1].send_signal(sent)
    assert finish(both) == [ending.RESUMABLE] * 2
    saved = re.search(r"saved step (\d+)\b.*\ntold to stop: go on with --resume", said(tmp_path))
    assert saved and [path.name for path in (tmp_path / "runs" / "t" / "checkpoints").iterdir()] == [saved[1]]
    assert ("Ctrl-C again ends them at once" in said(tmp_path, 1)) == (sent == signal.SIGINT)


@pytest.mark.long
def test_multi_process_a_signal_to_one_host_waits_for_no_reward_that_hangs_on_the_other(tmp_path):
    both = start(tmp_path, 2, 4, config=SMALL.replace("my_rewards:slow", "my_rewards:hangs_on_second"))
    wait_for(tmp_path, "hangs", index=1)
    both[0].send_signal(signal.SIGTERM)
    assert finish(both, 60) == [ending.RESUMABLE] * 2
    for index in range(2):
        assert "inside of a reward that does not return: its step is left out; step 1 is saved" in said(tmp_path, index)
    assert [path.name for path in (tmp_path / "runs" / "t" / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.long), 1])
def test_multi_process_when_one_host_dies_the_other_names_it_and_ends(tmp_path, lost):
    both = start(tmp_path, 2, 4, config=SMALL)
    wait_for(tmp_path, "grad")
    both[lost].kill()
    begun = time.monotonic()
    ended = finish(both, 60)
    assert ended[lost] == -signal.SIGKILL and ended[1 - lost] != 0
    assert time.monotonic() - begun < 60
    if lost:
        assert ended[0] == ending.LOST
        assert f"error: host 1 ({socket.gethostname()}) has ended" in said(tmp_path, 0)
    else:  # JAX may be the first to notice
        first, _, rest = said(tmp_path, 1).partition(f"host 0, which JAX calls the leader, is {socket.gethostname()}")
        assert "error" not in first and re.search(r"error: host 0 \(|leader", rest)


@pytest.mark.long
def test_multi_process_an_error_on_one_host_ends_all(tmp_path):
    both = start(tmp_path, 2, 4, config=SMALL.replace("my_rewards:slow", "my_rewards:broken_on_second"))
    assert finish(both, 120) == [codes.STEP_FAILED] * 2
    assert "in broken_on_second" in said(tmp_path, 1) and "no more disk" in said(tmp_path, 1)
    assert re.search(
        rf"error: host 1 \({socket.gethostname()}\) has ended, so this one ends, too: .*no more disk", said(tmp_path, 0)
    )
    assert "step 1 is saved: go on from it with --resume" in said(tmp_path, 1)
    assert [path.name for path in (tmp_path / "runs" / "t" / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        pytest.param("", "has ended, so this one ends, too: .*data.jsonl is not a file", marks=pytest.mark.long),
        ('{"prompt": "1 + 2 =", "answer": "4"}\n', "has another training data than host 0"),
    ],
)
def test_multi_process_data_that_is_missing_or_different_on_one_host_ends_all(tmp_path, second, words):
    task = 'task: {use: arithmetic, operations: "+", largest: 9, train: 16, held_out: 8}'
    config = SMALL.replace(task, "task: {use: jsonl, path: data.jsonl}")
    folders = [fill(tmp_path / str(index), config) for index in range(2)]
    variables = environment(2, 1)
    for folder, text in zip(folders, ['{"prompt": "1 + 2 =", "answer": "3"}\n', second], strict=True):
        if text:
            (folder / "data.jsonl").write_text(8 * text)
    both = [launch(folder, index, variables, *TRAIN) for index, folder in enumerate(folders)]
    assert finish(both) == [2, 2]
    assert re.search(rf"[hH]ost 1 \({socket.gethostname()}\) {words}", said(folders[0], 0))
    assert not (folders[0] / "runs").exists()


def test_multi_process_rewards_that_differ_are_refused(tmp_path):
    folders = [fill(tmp_path / str(index), SMALL) for index in range(2)]
    (folders[1] / "my_rewards.py").write_text(REWARDS.replace("/ 10", "/ 11"))
    variables = environment(2, 1)
    both = [launch(folder, index, variables, *TRAIN) for index, folder in enumerate(folders)]
    assert finish(both) == [2, 2]
    assert f"Host 1 ({socket.gethostname()}) has another code in its current folder than host 0" in said(folders[0], 0)


NO_ROOM = "grpo_jax.devices.mesh.memory_limit = lambda devices: 1"
ANOTHER_STEP = """
known = grpo_jax.training.record.Record.__init__
grpo_jax.training.record.Record.__init__ = lambda self, *inputs: known(self, *inputs) or self.history.append({})
"""


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        pytest.param(
            NO_ROOM, "another mesh than host 0 .* Set mesh.data, mesh.fsdp and mesh.tensor", marks=pytest.mark.long
        ),
        (ANOTHER_STEP, "another history of the run than host 0 .* They do not see the same .*/runs/t yet"),
    ],
    ids=["memory", "metrics"],
)
def test_multi_process_hosts_that_see_different_devices_or_runs_are_refused(tmp_path, patch, words):
    """A patch changes something of this package on the second host."""
    fill(tmp_path, SMALL)
    program = (
        "import os, sys; import grpo_jax.devices.mesh, grpo_jax.training.record;"
        f" exec({patch!r} if os.environ['JAX_PROCESS_ID'] == '1' else '');"
        " from grpo_jax.cli import main; sys.exit(main(['train', 'config.yaml']))"
    )
    variables = environment(2, 2)
    assert finish([launch(tmp_path, index, variables, "-c", program) for index in range(2)]) == [2, 2]
    assert re.search(rf"Host 1 \({socket.gethostname()}\) has {words}", said(tmp_path, 0))


def test_multi_process_hosts_with_different_configs_are_refused(tmp_path):
    fill(tmp_path, SMALL)
    variables = environment(2, 4)
    both = [launch(tmp_path, 0, variables, *TRAIN), launch(tmp_path, 1, variables, *TRAIN, "train.seed=1")]
    assert finish(both) == [2, 2]
    for index in range(2):
        assert f"Host 1 ({socket.gethostname()}) has another config than host 0" in said(tmp_path, index)
    assert not (tmp_path / "runs").exists()


def test_multi_process_hosts_print_what_differs_and_why_one_of_them_has_ended(tmp_path):
    variables, name = environment(2, 1), socket.gethostname()
    both = [launch(tmp_path, index, variables, "-c", EXCHANGE) for index in range(2)]
    assert finish(both) == [130, 130]
    for index in range(2):
        lines = said(tmp_path, index)
        assert "20000 ['0', '1'] chosen by 0\n" in lines
        assert f"Host 1 ({name}) has another version of the code than host 0 ({name})" in lines
        assert f"{tmp_path}/{index} is not on host 1 ({name}): all hosts write one checkpoint. Set run.root to" in lines
        assert lines.count("accepted") == 1 and not list(tmp_path.rglob(".seen*"))
    assert re.search(
        "Ctrl-C again ends them at once\ngoes on\n(.*\n)*interrupted; all other hosts end", said(tmp_path, 0)
    )
    assert f"error: host 0 ({name}) has ended, so this one ends, too: it was interrupted\n" in said(tmp_path, 1)


def test_multi_process_hosts_that_are_done_exit_with_0_even_while_they_send_heartbeats(tmp_path):
    """Python aborts if it ends while a thread is inside JAX; here the heartbeat thread is there nearly always."""
    program = """
from grpo_jax.hosts import ending, meeting, store

ending.HEARTBEAT_SECONDS = 0.0005
meeting.join()
store.gather("done")
"""
    for _ in range(4):
        variables = environment(2, 1)
        assert finish([launch(tmp_path, index, variables, "-c", program) for index in range(2)], 60) == [0, 0]


def test_multi_process_a_signal_before_the_first_step_stops_the_run_after_a_step(tmp_path):
    program = """
import os, signal, time
from grpo_jax.hosts import ending, meeting, store

meeting.join()
stop = ending.StopSignal()
if os.environ["JAX_PROCESS_ID"] == "1":
    signal.raise_signal(signal.SIGTERM)
store.gather("sent")
steps = 1
while not stop.after_step() and steps < 100:
    steps += 1
    time.sleep(0.1)
print("steps", steps)
"""
    variables = environment(2, 1)
    both = [launch(tmp_path, index, variables, "-c", program) for index in range(2)]
    assert finish(both) == [0, 0]
    steps = [re.search(r"steps (\d+)", said(tmp_path, index))[1] for index in range(2)]
    assert steps[0] == steps[1] and int(steps[0]) < 100


def test_multi_process_hosts_that_expect_different_numbers_of_hosts_are_refused(tmp_path):
    fill(tmp_path, SMALL)
    variables, name = environment(2, 1), socket.gethostname()
    both = [launch(tmp_path, index, variables | {"JAX_NUM_PROCESSES": f"{2 + index}"}, *TRAIN) for index in range(2)]
    assert finish(both) == [2, 2]
    for index in range(2):
        assert (
            f"error: Host 1 ({name}) expects 3 processes, but host 0 ({name}) expects 2. Set JAX_NUM_PROCESSES"
            in said(tmp_path, index)
        )


@pytest.mark.parametrize(
    ("slices", "told", "refused"), [({}, "4", False), ({}, "2", True), ({"MEGASCALE_NUM_SLICES": "2"}, "8", False)]
)
def test_a_number_of_processes_other_than_the_hosts_of_the_slice_is_refused(slices, told, refused):
    said_by_slice = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "JAX_NUM_PROCESSES": told} | slices
    if refused:
        with pytest.raises(ValueError, match=r"JAX_NUM_PROCESSES is 2, but this TPU has 4 host\(s\). Unset"):
            meeting.check_process_count(said_by_slice)
    else:
        meeting.check_process_count(said_by_slice)
    meeting.check_process_count({"JAX_NUM_PROCESSES": told})


def test_a_second_sigterm_ends_a_run_on_one_host_even_if_it_has_looked_for_others(tmp_path):
    program = (
        "import signal; from grpo_jax.hosts import ending, meeting; meeting.join(); stop = ending.StopSignal();"
        " signal.raise_signal(signal.SIGTERM); print(stop.after_step(), flush=True);"
        " signal.raise_signal(signal.SIGTERM); print('still here')"
    )
    one = launch(tmp_path, 0, environment(1, 1), "-c", program)
    assert finish([one]) == [-signal.SIGTERM]
    assert said(tmp_path).endswith("True\n")


def test_a_host_that_waits_in_vain_prints_how_to_start_all_hosts(tmp_path):
    program = (
        "import sys; from grpo_jax.hosts import meeting; meeting.JOIN_SECONDS = 2; from grpo_jax.cli import main;"
        " sys.exit(main(['train', 'config.yaml']))"
    )
    one = launch(fill(tmp_path, SMALL), 0, environment(4, 1), "-c", program)
    assert finish([one]) == [ending.LOST]
    assert "have not started within 2 seconds. Start the same command on all of them" in said(tmp_path)
    assert "tpu_scripts/run.sh" in said(tmp_path)


@pytest.mark.long
def test_a_run_resumed_after_sigterm_equals_one_that_was_not_stopped(alone, tmp_path):
    (one,) = start(tmp_path, 1, 8, "train.save_every=50")
    wait_for(tmp_path, "step 1/4")
    one.send_signal(signal.SIGTERM)
    assert finish([one]) == [ending.RESUMABLE]
    assert "told to stop: go on with --resume" in said(tmp_path)
    train(tmp_path, 1, 8, "--resume")
    for a, b in zip(weights(alone, 4), weights(tmp_path / "runs" / "t", 4), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_leaves_signals_as_it_found_them_and_may_run_in_a_thread():
    before = signal.getsignal(signal.SIGTERM)
    stop = ending.StopSignal()
    assert signal.getsignal(signal.SIGTERM) != before
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(ending.StopSignal).result().after_step()
    assert signal.getsignal(signal.SIGTERM) == before


def test_on_one_host_every_check_passes_and_errors_are_raised():
    assert store.gather("here") == ["here"] and store.decide(lambda: "yes") == "yes" and store.is_first()
    meeting.check_same({"config": "any"})
    meeting.check_shared_directory(Path("/"))
    with pytest.raises(RuntimeError, match="alone"), ending.end_all_hosts_on_error():
        raise RuntimeError("alone")


def test_held_out_prompts_that_do_not_fill_the_devices_are_all_answered_and_count_once(tmp_path):
    """Five prompts on eight devices. The reward is the answer's own value, so it shows which prompts were answered."""
    (tmp_path / "config.yaml").write_text(CONFIG.replace('rewards: [{use: "my_rewards:evens"}]', ""))
    parts = build(read(tmp_path / "config.yaml", ["train.evaluate_prompts=5", "rollout.at_once=null"]))
    session = assemble(*(parts[name] for name in ("model", "task", "algorithm", "settings", "layout")))
    asked = []

    def value(example, response):
        asked.append(example)
        return float(example.answer)

    held_out = arithmetic(operations="+", largest=9, train=64, held_out=16).held_out[:5]
    algorithm = replace(session.algorithm, reward=Mix(((value, 1.0),)))
    means = evaluate_questions(algorithm, session.held_out, first_state(session).params, 0, nullcontext)
    assert means["reward"] == pytest.approx(np.mean([float(example.answer) for example in held_out]))
    assert len(asked) == 8 and all(example in asked for example in held_out)


def test_a_global_array_is_made_of_what_the_hosts_have():
    mesh = Layout(data=2, fsdp=2, tensor=2).mesh()
    own = np.arange(24).reshape(8, 3)
    assert prompts_of_host(mesh, 8).tolist() == list(range(8))
    np.testing.assert_array_equal(values_of_host(from_hosts(own, mesh)), own)
    check_hosts(mesh)


def test_reading_prompts_with_the_copy_for_sampling_equals_reading_them_with_the_weights():
    model = tiny()
    params = model.policy.init(jax.random.key(0))
    prompts = Prompts(jnp.arange(12).reshape(2, 6) + 40, jnp.arange(6)[None] >= jnp.array([[0], [2]]))
    one, other = (model.policy.read(weights, prompts) for weights in (params, model.policy.serve(params)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
