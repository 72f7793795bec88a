"""The programs of a step compile for a TPU slice, on any machine with libtpu: pip install -e ".[tpu]"."""

import json
import math
import re
from dataclasses import replace

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from grpo_jax.cli import main
from grpo_jax.commands.plan import case as plan_case
from grpo_jax.commands.plan import programs as plan_programs
from grpo_jax.commands.plan.advice import advice
from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.estimate import estimated_learning
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.programs import Phase
from grpo_jax.commands.plan.topology import GIB, Slice, find_slice
from grpo_jax.config import Config, read
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy

pytestmark = pytest.mark.slow  # compiles for TPUs

SHAPE = Shape(
    vocabulary=32768,
    width=1024,
    feedforward=3072,
    layers=8,
    heads=16,
    kv_heads=8,
    channels=128,
    rope=Rope(1e6),
    norm_epsilon=1e-6,
    max_positions=4096,
    tied=True,
    head_norm=True,
)


@pytest.fixture(autouse=True)
def no_cache_of_programs():
    """What was compiled for a TPU cannot be loaded again without one."""
    compilation_cache.reset_cache()
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


CONFIG = """
model: {name: qwen3-0.6b, remat: full}
task: {use: arithmetic}
rollout: {responses: 8, max_tokens: 256}
objective: {use: dapo}
algorithm: {responses_at_once: 32}
train: {steps: 1, prompts: 8, max_prompt_tokens: 128}
"""
LONG = ("rollout.max_tokens=2048", "train.max_prompt_tokens=512")
EIGHT = ("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2")


def config_of(tmp_path, *overrides: str) -> Config:
    (tmp_path / "config.yaml").write_text(CONFIG)
    return read(tmp_path / "config.yaml", overrides)


@pytest.fixture
def case_of(tmp_path, monkeypatch):
    """Plans for SHAPE, with other sizes where they are given."""
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")

    def assemble(topology: str, *overrides: str, **sizes: int) -> Case:
        monkeypatch.setattr(plan_case, "find_shape", lambda name: replace(SHAPE, **sizes))
        return plan_case.assemble(config_of(tmp_path, *overrides), find_slice(topology))

    return assemble


def unfused(program: str) -> str:
    """The computations of a program that write to memory: not those inside of fusions, which work in registers."""
    inside = set(re.findall(r"calls=%([\w.\-]+)", program))
    return "\n".join(
        part for part in re.split(r"\n(?=\S.*\{\n)", program) if part.lstrip("%").partition(" ")[0] not in inside
    )


def gathered(program: str) -> list[tuple[int, ...]]:
    """The shapes of all arrays that a program gathers, also where it only starts to."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", program)
    return [tuple(map(int, shape.split(","))) for result in results for shape in re.findall(r"\[([\d,]+)\]", result)]


def largest_gathered(program: str) -> int:
    """The most numbers in one gathered array, but for the embedding, which is no layer's."""
    return max((math.prod(shape) for shape in gathered(program) if SHAPE.vocabulary not in shape), default=0)


def test_gathers_are_found_however_the_compiler_writes_them():
    program = """
  %a = bf16[8,32]{1,0:T(8,128)} all-gather(%x), dimensions={0}
  %b = (bf16[4,16]{1,0}, bf16[64,16]{1,0:T(8,128)S(1)}) all-gather-start(%y), dimensions={0}
  %c = (f32[2,3]{1,0}, f32[5,7]{1,0}) all-gather(%z, %w), dimensions={0}
  %d = bf16[999,999] all-reduce(%a)
"""
    assert gathered(program) == [(8, 32), (4, 16), (64, 16), (2, 3), (5, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("int8", ["true", pytest.param("false", marks=pytest.mark.long)])
@pytest.mark.parametrize("chip", ["v5e-1", pytest.param("v6e-1", marks=pytest.mark.long)])
def test_decoding_on_one_chip_copies_no_cache(case_of, chip, int8):
    case = case_of(chip, *LONG, f"rollout.int8_cache={int8}")
    compiled = plan_programs.compile_decoding(case)
    used = compiled.memory_analysis()
    own_bytes = plan_programs.device_bytes(plan_programs.decoding_inputs(case)[2])
    assert used.temp_size_in_bytes < 0.1 * own_bytes
    assert used.alias_size_in_bytes > 0.99 * own_bytes
    copies = re.findall(r"= \w+\[(?:8,8|64),8,2048,128\]\S* copy\(", unfused(compiled.as_text()))
    assert copies == []


def moved_out_of_vmem(program: str) -> list[int]:
    """The bytes of each copy out of a chip's own memory, which the compiler calls S(1)."""
    width = {"bf16": 2, "s8": 1, "f32": 4, "s32": 4, "u32": 4, "pred": 1}
    shapes = dict(re.findall(r"%([\w.\-]+) = (\w+\[[\d,]*\]\{[^}]*S\(1\)\}) ", program))
    moved = [shapes[name] for name in re.findall(r" copy-start\(%([\w.\-]+)\)", program) if name in shapes]
    found = [re.match(r"(\w+)\[([\d,]*)\]", shape).groups() for shape in moved]
    return [width[kind] * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in found]


def test_copies_out_of_vmem_are_counted_in_bytes():
    program = """
  %a = bf16[8,32]{1,0:T(8,128)(2,1)S(1)} dynamic-update-slice(%x, %y, %z)
  %copy-start = (bf16[8,32]{1,0}, bf16[8,32]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%a)
  %b = f32[8,32]{1,0:T(8,128)} add(%x, %y)
  %copy-start.1 = (f32[8,32]{1,0:S(1)}, f32[8,32]{1,0}, u32[]{:S(2)}) copy-start(%b)
"""
    assert moved_out_of_vmem(program) == [8 * 32 * 2]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("channels", "most"), [(128, 0.01), (96, 0.2)])
def test_decoding_moves_few_caches_that_fit_into_vmem_back(case_of, channels, most):
    sizes = {"width": 1536, "feedforward": 8960, "heads": 12, "kv_heads": 2, "vocabulary": 151936, "channels": channels}
    case = case_of("v5e-1", "rollout.max_tokens=1024", **sizes)
    own = plan_programs.decoding_inputs(case)[2]
    own_bytes, cache_bytes = (plan_programs.device_bytes(tree) for tree in (own, own[0].key))
    moved = [n for n in moved_out_of_vmem(plan_programs.compile_decoding(case).as_text()) if n >= cache_bytes / 2]
    # without the kernel, the last layer's and one more; 0.8 if each layer wrote before it attends
    assert sum(moved) < most * own_bytes


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("chips", "mesh"),
    [("v5e-1", ()), ("v5e-8", ("mesh.data=1", "mesh.fsdp=8")), ("v5e-8", EIGHT), ("v6e-1", ())],
)
def test_the_sampler_with_its_kernel_compiles(case_of, chips, mesh):
    sizes = {"layers": 28, "vocabulary": 151936}  # Qwen3-0.6B
    compiled = plan_programs.compile_decoding(case_of(chips, "rollout.max_tokens=1000", *mesh, **sizes))
    program = compiled.as_text()
    assert len(re.findall(r"%attend_ring[\w.]* = .*custom-call", program)) == 28
    own_bytes = plan_programs.device_bytes(plan_programs.decoding_inputs(case_of(chips, *mesh, **sizes))[2])
    assert sum(moved_out_of_vmem(program)) < 0.05 * own_bytes


@pytest.mark.slow
def test_decoding_on_eight_chips_gathers_no_weight(case_of):
    compiled = plan_programs.compile_decoding(case_of("v5e-8", *LONG, *EIGHT))
    assert largest_gathered(compiled.as_text()) < SHAPE.width * SHAPE.width / 2


@pytest.mark.slow
def test_decoding_on_eight_chips_gathers_logits_and_not_the_head(case_of):
    case = case_of("v5e-8", *EIGHT, layers=1, vocabulary=151936)
    shapes = gathered(plan_programs.compile_decoding(case).as_text())
    assert any(151936 in shape for shape in shapes)
    assert not any({151936, SHAPE.width} <= set(shape) for shape in shapes)


@pytest.mark.slow
def test_the_copy_for_sampling_is_gathered_once_and_a_plan_of_eight_chips_counts_it(case_of):
    case = case_of("v5e-8", *EIGHT, layers=2)
    served = plan_programs.decoding_inputs(case)[0]
    copied = plan_programs.device_bytes(served)
    matrices = sum(plan_programs.device_bytes(a) for a in jax.tree.leaves(served) if a.ndim > 1)
    moved = collective_bytes(plan_programs.compile_serving(case).as_text())
    assert matrices / 2 < moved < 2 * copied
    phase = plan_programs.plan_sampling(case)
    assert phase.collective > moved
    assert plan_programs.device_bytes(case.state) + copied < phase.peak < case.slice.chip.memory


@pytest.mark.slow
def test_learning_compiles_for_eight_chips_with_its_state_donated_and_its_attention_fused(case_of):
    case = case_of("v5e-8", *EIGHT, layers=2)
    learn, step = plan_programs.compile_learning(case, case.cut(8))
    weights = plan_programs.device_bytes(case.state.params)
    assert step.memory_analysis().alias_size_in_bytes > 0.99 * plan_programs.device_bytes(case.state)
    assert learn.memory_analysis().alias_size_in_bytes > 0.99 * weights  # the gradient is added to in place
    program = learn.as_text()
    assert "splash" in program
    scores = 4 * 8 // 4 * (16 // 2) * 256 * 384  # of all pairs of tokens, on one device
    largest = max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"= \w+\[([\d,]+)\]", program))
    assert largest < max(scores, 2 * SHAPE.vocabulary * SHAPE.width)
    assert collective_bytes(program) > weights


@pytest.mark.long
@pytest.mark.slow
def test_a_further_layer_needs_memory_for_its_input_and_not_for_its_gradient_or_its_cast_weights(case_of):
    used = {}
    for layers in (4, 8):
        case = case_of("v5e-1", "algorithm.responses_at_once=8", "train.prompts=2", layers=layers)
        learn = plan_programs.compile_learning(case, case.cut(8))[0]
        used[layers] = learn.memory_analysis().temp_size_in_bytes
        assert f"bf16[{layers},{SHAPE.feedforward},{SHAPE.width}]" not in learn.as_text()
    of_layer = SHAPE.width * (3 * SHAPE.feedforward + 6 * SHAPE.width)  # weights
    assert used[8] - used[4] < 4 * 2 * of_layer / 2  # half of them in bfloat16


@pytest.mark.long
@pytest.mark.slow
def test_on_eight_chips_no_product_is_cut_into_partial_products_and_gradients_are_scattered(case_of):
    case = case_of("v5e-8", "mesh.data=1", "mesh.fsdp=8", "mesh.tensor=1", layers=2)
    program = plan_programs.compile_learning(case, case.cut(8))[0].as_text()
    assert "windowed" not in program
    assert 0 < largest_summed(program) < SHAPE.width**2 / 2  # norms, and no layer's matrix


def largest_summed(program: str) -> int:
    """The most numbers of one array that every chip has the sum of, but for embedding and head. Sums of which a chip
    keeps only its part are computations of their own, by name.
    """
    parts = re.split(r"\n(?=\S.*\{\n)", program)
    whole = [part for part in parts if not part.startswith("%all-reduce-scatter")]
    sums = [line for part in whole for line in part.splitlines() if " all-reduce(" in line]
    shapes = re.findall(r"\[([\d,]+)\]", " ".join(line.partition(" all-reduce(")[0] for line in sums))
    sizes = [tuple(map(int, shape.split(","))) for shape in shapes]
    return max((math.prod(shape) for shape in sizes if SHAPE.vocabulary not in shape), default=0)


ADAFACTOR = ("model.name=Qwen/Qwen3-1.7B", "model.remat=offload", "optimizer.use=adafactor")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("responses", "overrides"),
    [
        (64, ("model.name=Qwen/Qwen3-0.6B", "rollout.max_tokens=768")),
        (8, (*ADAFACTOR, "rollout.max_tokens=1024")),
    ],
    ids=["0.6B, one part", "1.7B, eight parts"],
)
def test_one_v5e_chip_learns_every_parameter(tmp_path, responses, overrides):
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    config = config_of(tmp_path, *overrides, "train.max_prompt_tokens=256", "algorithm.responses_at_once=null")
    phase = plan_programs.plan_learning(plan_case.assemble(config, find_slice("v5e-1")), responses)
    assert phase.peak is not None and phase.peak < 15.75 * GIB, phase.message


@pytest.mark.long
@pytest.mark.slow
def test_on_four_hosts_learning_gathers_a_layer_at_a_time_and_decoding_no_weight(case_of):
    case = case_of("v5e-16", "train.prompts=16", "algorithm.responses_at_once=8", layers=12)
    learned, decoded = plan_programs.compile_learning(case, case.cut(8))[0], plan_programs.compile_decoding(case)
    assert 0 < largest_gathered(learned.as_text()) <= SHAPE.feedforward * SHAPE.width
    assert largest_gathered(decoded.as_text()) < SHAPE.width * SHAPE.width / 2
    assert case.sampled == (4, 8, 1)  # a host has a fourth of the prompts


@pytest.mark.parametrize(
    ("name", "hosts", "chips"),
    [("v5e-1", 1, 1), ("v5e-8", 1, 8), ("v6e-16", 4, 4), ("v5p-8", 1, 4), ("v5p-128", 16, 4)],
)
def test_slices_are_made_of_hosts(name, hosts, chips):
    found = find_slice(name)
    assert (found.hosts, found.host.chips, found.host.hosts) == (hosts, chips, 1)


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_says_what_fits(tmp_path, capsys):
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.replace("qwen3-0.6b", "tiny"))
    assert main(["plan", str(config), "--topology", "v5e-1", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert figures["fits"] and figures["largest_responses_at_once"] == 64
    for phase in ("sample", "train"):
        assert figures[phase]["temp_bytes"] < figures[phase]["peak_hbm_bytes"] < figures["hbm_limit_bytes"]
        assert figures[phase]["argument_bytes"] > 4 * 200_000 * (phase == "train")
    assert "It fits." in printed.err


def case_without_compiler(tmp_path, *overrides: str) -> Case:
    """A plan for eight chips, laid out over the CPU's devices."""
    config = config_of(tmp_path, *overrides)
    policy = decoder_policy(SHAPE, platform="tpu")
    supplied = {"policy": policy, "sample": config.rollout.build(ends=(0,)), "decode": str, "reward": len}
    algorithm = config.algorithm.build(
        **supplied, objective=config.objective.build(), optimizer=config.optimizer.build()
    )
    mesh = config.mesh.build().mesh()
    sampler = supplied["sample"]
    return Case(config, algorithm, sampler, SHAPE, config.train.build(), find_slice("v5e-8"), mesh, mesh)


def test_a_plan_counts_a_teacher_and_has_greedy_answers_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Slice, "devices", lambda self: jax.devices())
    found, taught = find_slice("v5e-8"), ("objective.use=distillation", "teacher.name=qwen3-0.6b")
    alone, pupil = (plan_case.assemble(config_of(tmp_path, *EIGHT, *more), found) for more in ((), taught))
    assert alone.teacher_bytes == 0
    assert pupil.teacher_bytes == plan_programs.device_bytes(alone.state.params)
    judged = plan_case.assemble(config_of(tmp_path, *EIGHT, "judge.name=qwen3-0.6b"), found)
    assert (alone.judge_bytes, judged.judge_bytes) == (0, pupil.teacher_bytes)
    assert estimated_learning(judged, 8).argument == estimated_learning(alone, 8).argument + pupil.teacher_bytes
    far = plan_case.assemble(
        config_of(tmp_path, *EIGHT, "judge.use=endpoint", "judge.url=http://a", "judge.model=b"), found
    )
    assert far.judge_bytes == 0
    asked = config_of(tmp_path, *EIGHT, "objective.use=remax")
    greedy = plan_case.assemble(asked, found).algorithm.engine.greedy()
    assert (greedy.temperature, greedy.responses) == (0.0, 1)


FIGURES = {
    "weights_bytes": 4,
    "weights_type": "float32",
    "optimizer_bytes": 8,
    "reference_bytes": 0,
    "kv_cache_bytes": 100,
}
ROOM, NO_ROOM = Phase(1), Phase(None)
LARGE = Phase(2**40, temporary=100)


@pytest.mark.parametrize(
    ("overrides", "sample", "train", "others", "expected"),
    [
        (
            ("mesh.data=-1",),
            NO_ROOM,
            ROOM,
            {},
            ["rollout.int8_cache=true", "rollout.max_tokens=128", "mesh.fsdp=8 mesh.data=1"],
        ),
        (
            ("rollout.int8_cache=true", "rollout.at_once=8", "mesh.fsdp=-1", "mesh.data=1"),
            NO_ROOM,
            ROOM,
            {},
            ["rollout.max_tokens=128", "optimizer.use=adafactor", "optimizer.moments_in=host"],
        ),
        (
            ("mesh.fsdp=2", "mesh.data=1", "mesh.tensor=4"),
            ROOM,
            LARGE,
            {8: Phase(LARGE.peak - 75)},
            ["model.remat=offload", "algorithm.responses_at_once=8", "rollout.max_tokens=128"],
        ),
        (
            ("optimizer.moments=bfloat16", "model.remat=none", "mesh.fsdp=8", "mesh.data=1"),
            ROOM,
            LARGE,
            {4: Phase(LARGE.peak + 4), 2: NO_ROOM},
            ["model.remat=full", "rollout.max_tokens=128", "optimizer.use=adafactor"],
        ),
    ],
)
def test_advice_names_what_saves_most_and_nothing_that_is_set(tmp_path, overrides, sample, train, others, expected):
    case = case_without_compiler(tmp_path, "algorithm.responses_at_once=64", *overrides)
    assert advice(case, FIGURES, sample, {case.responses_at_once: train} | others) == expected


@pytest.mark.parametrize(
    ("peaks", "advised"),
    [
        ({8: 40, 4: 30, 2: 14, 1: 12}, 2),
        ({8: 40, 4: 30, 2: None}, 4),
        ({8: 40, 4: 41}, None),
        ({8: None, 4: 20, 2: 18}, 2),
        ({4: 20, 8: 15}, 8),  # learning from all at once adds no gradients up
    ],
)
def test_the_advised_number_of_responses_at_once_fits_or_needs_less_than_now(tmp_path, peaks, advised):
    """Peaks are in GiB, of 15.75; the first number of responses is the one that is set."""
    case = case_without_compiler(
        tmp_path, "mesh.fsdp=8", "mesh.data=1", f"algorithm.responses_at_once={next(iter(peaks))}"
    )
    learned = {n: Phase(peak and peak * GIB, temporary=100) for n, peak in peaks.items()}
    named = [name for name in advice(case, FIGURES, ROOM, learned) if "responses_at_once" in name]
    assert named == ([] if advised is None else [f"algorithm.responses_at_once={advised}"])


def test_advice_about_responses_at_once_is_estimated_where_no_other_number_was_tried(tmp_path):
    settings = ("model.remat=none", "mesh.fsdp=8", "mesh.data=1", "rollout.max_tokens=2048")
    case = case_without_compiler(tmp_path, *settings)
    assert case.estimated_peak(4) < case.estimated_peak(8)
    assert "algorithm.responses_at_once=4" in advice(case, FIGURES, NO_ROOM, {8: NO_ROOM})


@pytest.mark.parametrize(
    ("name", "chips", "grid"),
    [
        ("v5e-1", 1, "1x1"),
        ("v5litepod-8", 8, "2x4"),
        ("v6e-4", 4, "2x2"),
        ("v5p-8", 4, "2x2x1"),
        ("v5p-16", 8, "2x2x2"),
        ("v4-8", 4, "2x2x1"),
        ("v5e-256", 256, "16x16"),
    ],
)
def test_slices_go_by_the_names_people_know(name, chips, grid):
    found = find_slice(name)
    assert (found.chips, found.grid) == (chips, grid)


@pytest.mark.parametrize("name", ["v4-8", "v5p-8", "v5e-8"])
def test_a_device_to_compile_for_is_a_chip(name):
    pytest.importorskip("libtpu", reason="libtpu is large, and only these tests need it where there is no TPU")
    assert len(find_slice(name).devices()) == find_slice(name).chips


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e-12", "nearest are v5e-8 and v5e-16"),
        ("v5p-12", "nearest are v5p-8 and v5p-16"),
        ("v7-8", "such as v"),
        ("a100", "such as"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused_with_the_nearest(name, words):
    with pytest.raises(ValueError, match=words):
        find_slice(name)


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    program = """HloModule m

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ag = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %c = pred[] constant(true)
}

ENTRY %main (a: f32[2,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %ar = bf16[16]{0} all-reduce(bf16[16]{0} %y), to_apply=%add
}
"""
    assert collective_bytes(program) == 5 * 8 * 4 * 4 + 16 * 2
    pieces = program.replace("dimensions={0}", "channel_id=7, dimensions={0}").replace(
        "to_apply=%add",
        "to_apply=%add\n  %ag = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), channel_id=7, dimensions={0}",
    )
    assert collective_bytes(pieces) == 8 * 4 * 4 + 16 * 2  # one gather, which goes on beside the loop
    endless = program.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert collective_bytes(endless, iterations=3) == 3 * 8 * 4 * 4 + 16 * 2
