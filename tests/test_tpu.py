"""The programs of a step compile for a TPU slice, on any machine with libtpu: pip install -e ".[tpu]"."""

import json
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from grpo_jax.cli import main
from grpo_jax.commands.plan import case as plan_case
from grpo_jax.commands.plan import programs as plan_programs
from grpo_jax.commands.plan.advice import TRIALS, Advice, advice, changes, expected
from grpo_jax.commands.plan.case import Case
from grpo_jax.commands.plan.estimate import estimated_learning, estimated_sampling
from grpo_jax.commands.plan.hlo import collective_bytes
from grpo_jax.commands.plan.programs import Phase
from grpo_jax.commands.plan.search import Planned
from grpo_jax.commands.plan.topology import GIB, Slice, find_slice
from grpo_jax.config import Config, read
from grpo_jax.devices.mesh import prompt_shards
from grpo_jax.devices.sharding import prefix_sharding
from grpo_jax.models.attention import KeyValues, Scope
from grpo_jax.models.attention.fused import splash_rows
from grpo_jax.models.decoder import Rope, Shape
from grpo_jax.models.policy import decoder_policy
from grpo_jax.rollout import reading, stages

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


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("topology", ["v5e-1", "v5e-8"])
def test_rows_with_answers_to_read_copy_no_cache_and_move_in_place_on_their_own_devices(case_of, topology):
    case = case_of(topology, *LONG)
    served, shared, own, rows = plan_programs.decoding_inputs(case)
    (P, G), T, mesh = rows.length_PG.shape, case.sampler.max_tokens, case.host_mesh
    given_PGT = plan_programs.fitted(jax.ShapeDtypeStruct((P, G, T), jnp.int32), plan_programs.PROMPTS, mesh)
    shift_PG = plan_programs.fitted(jax.ShapeDtypeStruct((P, G), jnp.int32), plan_programs.PROMPTS, mesh)
    known, several = (case.algorithm.policy, case.sampler.distribution), mesh if mesh.size > 1 else None
    rows, until = replace(rows, given_PGT=given_PGT), stages.Until(2**30, -1, 1, P + 1)
    decoding = stages.decode.lower(*known, served, shared, own, rows, T, until, several).compile()
    used, own_bytes = decoding.memory_analysis(), plan_programs.device_bytes(own)
    assert used.temp_size_in_bytes < 0.1 * own_bytes < own_bytes < 1.01 * used.alias_size_in_bytes
    one = jax.tree.leaves(own)[0]
    moving = stages.move_cache.lower(one, shift_PG, several).compile()
    used, own_bytes = moving.memory_analysis(), plan_programs.device_bytes([one])
    assert used.temp_size_in_bytes < 0.1 * own_bytes < own_bytes < 1.01 * used.alias_size_in_bytes
    assert not re.search("all-gather|all-reduce|all-to-all|collective", moving.as_text())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("topology", ["v5e-1", "v5e-8"])
def test_a_long_answer_is_read_with_the_caches_of_one_row_which_are_put_back_in_place(case_of, topology):
    case = case_of(topology, *LONG)
    served, shared, own, _ = plan_programs.decoding_inputs(case)
    mesh = case.host_mesh
    n, several = (1, None) if mesh.size == 1 else (prompt_shards(mesh), mesh)

    def given(*shape):
        return plan_programs.fitted(jax.ShapeDtypeStruct(shape, jnp.int32), plan_programs.PROMPTS, mesh)

    row = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, 1, *a.shape[2:]), a.dtype), own)
    prompt = jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), shared)
    row = plan_programs.fitted(row, plan_programs.CACHE, mesh)
    prompt = plan_programs.with_shardings(prompt, jax.tree.map(lambda a: prefix_sharding(a.shape, mesh), prompt))
    tokens_n1T, of_rows = given(n, 1, reading.BLOCK_TOKENS), [given(n, 1) for _ in range(3)]
    inputs = (case.algorithm.policy, served, prompt, row, tokens_n1T, *of_rows, several)
    block = reading.read_block.lower(*inputs).compile()
    weights, of_row = plan_programs.device_bytes(served), plan_programs.device_bytes(row)
    used = block.memory_analysis()
    assert used.alias_size_in_bytes > 0.99 * of_row and used.temp_size_in_bytes < 0.1 * weights + 2 * of_row
    putting = reading.put_row.lower(jax.tree.leaves(own)[0], jax.tree.leaves(row)[0], given(n, 2), several).compile()
    used, own_bytes = putting.memory_analysis(), plan_programs.device_bytes(jax.tree.leaves(own)[:1])
    assert used.temp_size_in_bytes < 0.1 * own_bytes < own_bytes < 1.01 * used.alias_size_in_bytes
    assert not re.search("all-gather|all-reduce|all-to-all|collective", putting.as_text())


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
    return Case(
        config,
        algorithm,
        sampler,
        SHAPE,
        config.train.build(),
        find_slice("v5e-8"),
        mesh,
        mesh,
        config.model.arguments["remat"],
    )


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


class Settled(Case):
    """A case of which only its settings and its chip are known."""

    responses_at_once = 1

    def __init__(self, settings: tuple[str, ...]):
        vars(self).update(settings=settings, slice=find_slice("v5e-1"))


NEEDS = (20, 30)  # GiB of sampling and of learning, of 15.75
SAVES = {"a=1": (3, 0), "a=2": (4, 0), "b=3": (0, 14), "c.use=d": (5, 16), "c.e=4": (2, 9), "f=5": (4.9, 0)}


def needed(settings: tuple[str, ...], factor: float = 1.0) -> Planned:
    """What these settings need, if each saves its bytes."""
    saved = [sum(SAVES[each][phase] for each in settings) for phase in (0, 1)]
    sample, learn = (Phase(int((need - less) * factor * GIB)) for need, less in zip(NEEDS, saved, strict=True))
    return Planned(Settled(settings), sample, {1: learn})


@pytest.fixture
def advised(monkeypatch):
    """What is advised, and all that was compiled, where a compiler needs `factor` times what is expected."""
    monkeypatch.setattr("grpo_jax.commands.plan.advice.changes", lambda case: list(SAVES))

    def advised(factor: float = 1.0, given_up: tuple[str, ...] = ()) -> tuple[Advice, list[tuple[str, ...]]]:
        tried = []

        def expect(known: Planned, settings: tuple[str, ...]) -> Planned | None:
            if {"c.use=d", "c.e=4"} <= {*settings}:  # another `use` has other keys
                return None
            planned, before, like = needed(settings), needed(known.case.settings), known
            sample, learn = (
                Phase(now.peak + found.peak - old.peak)
                for now, found, old in zip(
                    *([each.sample, each.train] for each in (planned, like, before)), strict=True
                )
            )
            return Planned(planned.case, sample, {1: learn})

        def compiled(settings: tuple[str, ...], guess: Planned) -> Planned:
            tried.append(settings)
            found = needed(settings, factor)
            return found._replace(sample=Phase(None)) if set(given_up) & set(settings) else found

        return advice(needed((), factor), expect, compiled), tried

    return advised


@pytest.mark.parametrize("factor", [1.0, 1.1, 0.9])
def test_what_is_advised_was_compiled_and_fits(advised, factor):
    (settings, planned), tried = advised(factor)
    assert settings == tried[-1] and planned[1:] == needed(settings, factor)[1:] and planned.fits
    assert 1 <= len(tried) <= TRIALS
    keys = [each.partition("=")[0] for each in settings]
    assert len(set(keys)) == len(keys) and not {"c.use", "c.e"} <= set(keys)


def test_the_first_of_settings_that_help_alike_is_chosen(advised):
    (settings, _), tried = advised()
    assert settings == ("c.use=d",) and len(tried) == 1


def test_settings_that_the_compiler_gives_up_are_not_named_again_and_none_is_idle(advised):
    (settings, planned), tried = advised(given_up=("c.use=d",))
    assert "c.use=d" in tried[0] and "c.use=d" not in settings and planned.fits
    assert not any(needed(tuple({*settings} - {each})).fits for each in settings)


def test_where_nothing_fits_the_nearest_that_was_compiled_is_named(advised):
    (settings, planned), tried = advised(factor=5.0)
    assert settings in tried and not planned.fits and planned.peak == min(needed(each, 5.0).peak for each in tried)


def test_a_guess_is_the_estimate_and_what_the_last_estimate_was_wrong_by(tmp_path):
    case, fewer = (case_without_compiler(tmp_path, *more) for more in ((), ("optimizer.use=adafactor",)))
    n, estimates = case.responses_at_once, (estimated_sampling, lambda case: estimated_learning(case, n))
    sample, learn, *less = (estimate(each).peak for each in (case, fewer) for estimate in estimates)
    known = Planned(case, Phase(sample + 5), {n: Phase(learn - 7)})
    guess = expected(known, fewer)
    assert (guess.sample.peak, guess.train.peak) == (less[0] + 5, less[1] - 7)
    unknown = Planned(case, Phase(None), {n: Phase(None, message="Used 22.00G of 15.75G hbm")})
    guess = expected(unknown, fewer)
    assert guess.sample.peak > case.slice.chip.memory + less[0] - sample
    assert guess.train.peak == 22 * GIB + less[1] - learn


@pytest.mark.parametrize(
    ("overrides", "unnamed", "named"),
    [
        (("optimizer.use=adafactor",), "optimizer", "model.weights=bfloat16"),
        (("model.weights=bfloat16",), "weights=bfloat16", "optimizer.moments=int8"),
        (("rollout.int8_cache=true",), "rollout.int8_cache", "rollout.max_tokens=128"),
        (("model.remat=products",), "model.remat=products", "model.remat=full"),
        (("optimizer.moments_in=host",), "optimizer.moments_in", "optimizer.use=adafactor"),
        (("mesh.data=8", "mesh.fsdp=1"), "data=8", "mesh.fsdp=8 mesh.data=1"),
        (("objective.use=grpo",), "objective.beta", "objective.kl=0"),
        (("algorithm.responses_at_once=8",), "responses_at_once=8", "algorithm.responses_at_once=4"),
    ],
)
def test_only_settings_that_are_not_set_are_proposed(tmp_path, overrides, unnamed, named):
    found = list(changes(case_without_compiler(tmp_path, *overrides)))
    assert named in found and not any(unnamed in each for each in found)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.30G of 15.75G hbm.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.30G) exceeds"
        " available HBM (15.75G).",
    ],
)
def test_what_the_compiler_asked_for_is_read_from_what_it_said(message):
    assert Phase(None, message=message).asked == int(22.3 * GIB) and Phase(None).asked is None


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


@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("channels", [128, 256])
def test_attention_of_whole_rows_and_its_gradient_fit_the_vector_memory_of_a_chip(channels, softcap):
    """Gemma-2 has heads of 256 channels, a softcap and windows; the TPU compiler refuses blocks that are too large."""
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    device = jax.sharding.SingleDeviceSharding(find_slice("v5e-1").devices()[0])
    P, G, K, H, T, L = 2, 8, 4, 8, 1024, 256

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=device)

    def summed(query, own, prompt):
        scope = Scope(jnp.zeros((P, G, T), jnp.int32), jnp.ones((P, G, T), bool), jnp.ones((P, L), bool))
        return splash_rows(query, own, scope, prompt, 4096, softcap).astype(jnp.float32).sum()

    own, prompt = (KeyValues(array(*shape), array(*shape)) for shape in ((P, G, K, T, channels), (P, K, L, channels)))
    text = jax.jit(jax.grad(summed)).lower(array(P, G, H, T, channels), own, prompt).compile().as_text()
    assert "splash_mha_dkv" in text
