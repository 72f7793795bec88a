"""`grpo-jax plan --time`: readers of what the TPU compiler writes, on excerpts of it, and limits of three kernels."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.commands.plan.bundles import Kernel, kernel, kernels
from grpo_jax.commands.plan.cost import Live, costs
from grpo_jax.commands.plan.instructions import array_types, parse
from grpo_jax.commands.plan.lengths import Lengths, Size, read_lengths, turns
from grpo_jax.commands.plan.parts import SCOPES, SELDOM, part_of_path
from grpo_jax.commands.plan.progress import Progress
from grpo_jax.commands.plan.topology import CHIPS
from grpo_jax.commands.plan.traffic import moved, prefetched
from grpo_jax.rollout.sizes import ring_lengths

ROOT = Path(__file__).parent.parent
TPU = Path(__file__).parent / "data" / "tpu"
PROGRAM = r"""HloModule jit_decode, is_scheduled=true

%body (arg: (s32[], f32[8,130])) -> (s32[], f32[8,130]) {
  %arg = (s32[], f32[8,130]{1,0:T(8,128)}, f32[64,256]{1,0:T(8,128)}) parameter(0)
  %cache = f32[64,256]{1,0:T(8,128)} get-tuple-element(%arg), index=2
  %new = f32[8,256]{1,0:T(8,128)S(1)} custom-call(), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 256}"
}}, metadata={op_name="jit(decode)/while/body/attention/kernel"}
  %start = (f32[8,256]{1,0:T(8,128)S(1)}, f32[8,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%new)
  %write = f32[64,256]{1,0:T(8,128)} dynamic-update-slice(%cache, %new), metadata={op_name="jit(decode)/cache/update"}
  ROOT %out = (s32[]) tuple(%write)
}

%condition (arg: (s32[], f32[8,130])) -> pred[] {
  %limit = s32[] constant(28)
  %n = s32[] parameter(0)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (x: f32[8,130]) -> f32[8,130] {
  %x = f32[8,130]{1,0:T(8,128)} parameter(0)
  %sum = f32[8,130]{1,0:T(8,128)} add(%x, %x), metadata={op_name="jit(decode)/norm/add"}
  %loop = (s32[]) while(%sum), condition=%condition, body=%body
  ROOT %y = f32[8,130]{1,0:T(8,128)} copy(%sum)
}
"""


def test_cycles_are_the_bundles_of_loops_times_their_trips():
    # In the excerpt 9 bundles stand outside of the loop, and 23 in it, with the 4 that follow its branch; 66 trips.
    # The first of two matrix units multiplies 3 tiles a trip.
    assert kernels(TPU) == {"splash": Kernel(bundles=9 + 23 * 66, products=3.0 * 66, open=0)}


def test_inner_loops_multiply_and_a_loop_of_unknown_trips_is_counted_once_and_said():
    exits = "%p = scmp.ge.s32.totalorder %s, {} /* loop exit test */".format
    lines = [
        "     0   :  { a }",
        "   0x1 LB: > { a }",
        "   0x2 LB: >> { a }",
        f"   0x3   : >> {{ {exits(5)} }}",
        "   0x4   : > { %1 = sbr.rel (!%p) target = $region1 }",
        *("   0x5   :  {}",) * 4,
        f"   0x9   : > {{ {exits(10)} }}",
        "   0xa   :  { %2 = sbr.rel (!%p) target = $region2 }",
        *("   0xb   :  {}",) * 4,
        "   0xf LB: > { a }",
        "  0x10   :  { a }",
    ]
    # The inner loop has 2 bundles, its branch and 4 more: 7 x 5; the outer 2, its branch and 4 more.
    assert kernel(lines) == Kernel(bundles=1 + 10 * (7 + 7 * 5) + 1 + 1, products=0.0, open=1, open_bundles=1)


def test_a_product_of_8_rows_counts_half():
    line = "   0x0   :  {{ %1 = vmatmul.{}.mxu2 %v1 }}".format
    of = {kind: kernel([line(kind)]).products for kind in ("bf16.gmra", "bf16.vlgmr.msra.gmra", "f32.gmra")}
    assert of == {"bf16.gmra": 1, "bf16.vlgmr.msra.gmra": 1, "f32.gmra": 0.5}
    # 8 tiles of 16 rows are pushed, and come back transposed in 16 products: twice as many for the same 128 rows
    transposed = [*(line("lmr.bf16.gmra.16"),) * 16]
    assert kernel(transposed).products == kernel([line("bf16.gmra")] * 8).products


def test_kernels_that_are_alike_share_what_was_written(tmp_path):
    text = (TPU / "1-splash-01-final_bundles.txt").read_text()
    (tmp_path / "17-fusion.1-01-final_bundles.txt").write_text(text)
    alike = "key:fusion.1\nordinal:1\nequivalent_hlos[size=2]:\n  fusion.1\n  add.3\n"
    (tmp_path / "17-TLP-00-deduplication-map.txt").write_text(alike)
    found = kernels(tmp_path)
    assert found.keys() == {"fusion.1", "add.3"} and found["add.3"] == found["fusion.1"]


@pytest.mark.parametrize(
    ("text", "size", "in_hbm"),
    [
        ("f32[8,130]{1,0:T(8,128)}", 8 * 256 * 4, True),
        ("f32[130,8]{0,1:T(8,128)S(1)}", 8 * 256 * 4, False),
        ("bf16[3,5,64]{2,1,0:T(8,128)(2,1)}", 3 * 8 * 128 * 2, True),
        ("s8[7]", 7, True),
        ("f32[2,2]{1,0:T(8,128)S(5)}", 8 * 128 * 4, False),
    ],
)
def test_tiles_are_padded_and_only_the_large_memory_counts(text, size, in_hbm):
    (array,) = array_types(text)
    assert (array.bytes, array.in_hbm) == (size, in_hbm)


def test_a_program_is_read_with_its_loops_and_with_kernels_of_several_lines():
    program = parse(PROGRAM)
    body, entry = program.computations["body"], program.computations[program.entry]
    assert program.trips(entry["loop"]) == 28
    assert body["new"].path == "jit(decode)/while/body/attention/kernel" and body["out"].root
    assert moved(body["write"], body, program) == 2 * 8 * 256 * 4  # what is updated is read and written
    assert prefetched(body["start"]) == 8 * 256 * 4
    assert moved(entry["sum"], entry, program) == 3 * 8 * 256 * 4


def test_what_a_collective_brings_beside_a_product_is_no_traffic_of_the_product():
    program = parse("""HloModule jit_learn

%product (shard: bf16[64,16], whole: bf16[64,128], x: bf16[256,128], w: bf16[128,128]) -> bf16[256,128] {
  %shard = bf16[64,16]{0,1:T(8,128)(2,1)} parameter(0)
  %whole = bf16[64,128]{0,1:T(8,128)(2,1)} parameter(1)
  %x = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(2)
  %w = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(3)
  %y = bf16[256,128]{1,0:T(8,128)(2,1)} convolution(%x, %w)
  %gathered = bf16[64,128]{0,1:T(8,128)(2,1)} all-gather(%shard), channel_id=1
  ROOT %out = (bf16[256,128]{1,0:T(8,128)(2,1)}, bf16[64,16]{0,1:T(8,128)(2,1)}, bf16[64,128]{0,1:T(8,128)(2,1)}, bf16[64,128]{0,1:T(8,128)(2,1)}) tuple(%y, %shard, %whole, %gathered)
}

ENTRY %main (a: bf16[64,16], b: bf16[64,128], c: bf16[256,128], d: bf16[128,128]) -> bf16[256,128] {
  %a = bf16[64,16]{0,1:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,128]{0,1:T(8,128)(2,1)} parameter(1)
  %c = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(2)
  %d = bf16[128,128]{1,0:T(8,128)(2,1)} parameter(3)
  ROOT %all = (bf16[256,128]{1,0:T(8,128)(2,1)}, bf16[64,16]{0,1:T(8,128)(2,1)}, bf16[64,128]{0,1:T(8,128)(2,1)}, bf16[64,128]{0,1:T(8,128)(2,1)}) fusion(%a, %b, %c, %d), kind=kOutput, calls=%product
}
""")  # noqa: E501
    entry = program.computations[program.entry]
    # the product reads two matrices and writes one; the collective's bytes come over the links, which are counted apart
    assert moved(entry["all"], entry, program) == 2 * (256 * 128 + 128 * 128 + 256 * 128)


def test_a_slice_in_a_fusion_of_a_fusion_counts_as_what_it_reads():
    program = parse("""HloModule jit_learn

%slice (stacked: bf16[28,64,256], n: s32[]) -> bf16[64,256] {
  %stacked = bf16[28,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %n = s32[] parameter(1)
  %one = bf16[1,64,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%stacked, %n)
  ROOT %flat = bf16[64,256]{1,0:T(8,128)(2,1)} bitcast(%one)
}

%product (weights: bf16[28,64,256], m: s32[]) -> bf16[64,256] {
  %weights = bf16[28,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %m = s32[] parameter(1)
  ROOT %inside = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%weights, %m), kind=kLoop, calls=%slice
}

%flat (whole: bf16[64,256]) -> bf16[64,256] {
  %whole = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %same = bf16[64,256]{1,0:T(8,128)(2,1)} bitcast(%whole)
}

%head (table: bf16[64,256]) -> bf16[64,256] {
  %table = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %all_of_it = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%table), kind=kLoop, calls=%flat
  ROOT %multiplied = bf16[64,256]{1,0:T(8,128)(2,1)} convolution(%all_of_it)
}

ENTRY %main (all: bf16[28,64,256], k: s32[]) -> bf16[64,256] {
  %all = bf16[28,64,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %k = s32[]{:T(128)S(6)} parameter(1)
  %out = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%all, %k), kind=kOutput, calls=%product
  ROOT %last = bf16[64,256]{1,0:T(8,128)(2,1)} fusion(%out), kind=kOutput, calls=%head
}
""")
    entry = program.computations[program.entry]
    assert moved(entry["out"], entry, program) == 2 * 64 * 256 * 2  # a layer is read, and the result written
    assert moved(entry["last"], entry, program) == 2 * 64 * 256 * 2  # the inner fusion passes all of it on


def test_a_part_takes_the_longest_of_cores_units_and_memory():
    chip, written = CHIPS["v5e"], {"new": Kernel(1000, 100.0), "write": Kernel(10, 0.0), "sum": Kernel(100, 0.0)}
    found = costs(parse(PROGRAM), written, chip).parts
    assert found["attention"].core == pytest.approx(28 * 1010 / chip.clock)
    assert found["attention"].products == pytest.approx(28 * 1600 / chip.clock)
    assert found["attention"].bytes == 28 * 3 * 8 * 256 * 4
    of_write = max(10 / chip.clock, 2 * 8 * 256 * 4 / chip.bandwidth)
    assert found["attention"].seconds(chip) == pytest.approx(28 * (1600 / chip.clock + of_write))
    assert found["norms and rotations"].seconds(chip) == pytest.approx(100 / chip.clock)


@pytest.mark.parametrize(("name", "clock"), [("v4", 1.05e9), ("v5e", 1.5e9), ("v5p", 1.75e9), ("v6e", 1.75e9)])
def test_clocks_follow_from_flops_and_matrix_units(name, clock):
    assert CHIPS[name].clock == pytest.approx(clock, rel=0.01)


def test_the_outermost_scope_says_the_part_and_the_code_has_every_scope():
    assert part_of_path("jit(add_gradient)/transpose(jvp(head))/products/dot_general") == "head"
    assert part_of_path("jit(decode)/while/body/add") is None
    code = "\n".join(path.read_text() for path in (ROOT / "grpo_jax").rglob("*.py"))
    assert all(f'jax.named_scope("{scope}")' in code for scope in (*SCOPES, SELDOM))


def total(found):
    return sum(decoded.tokens for decoded in found.values())


def test_at_the_cap_each_buffer_is_used_until_it_is_full():
    found = turns(Lengths().draw(8, 8, 768), 8, ring_lengths(768), shards=1)
    tokens = {size: decoded.tokens for size, decoded in found.items()}
    assert tokens == {Size(8, 8, 96): 95, Size(8, 8, 192): 96, Size(8, 8, 384): 192, Size(8, 8, 768): 384}


def test_a_kernel_that_reads_what_lives_has_one_buffer_and_counts_positions_and_blocks():
    length_PG = Lengths(300.0, 0.5).draw(16, 8, 1000)
    ((size, found),) = turns(length_PG, 16, ring_lengths(1000, 128), shards=1, fewest=128).items()
    ages = [np.arange(2, length + 1) for length in length_PG.flatten()]
    assert size == Size(16, 8, 1024)
    assert found == (length_PG.max() - 1, sum(age.sum() for age in ages), sum((-(-age // 128)).sum() for age in ages))


def test_every_token_of_shorter_answers_is_decoded_with_fewer_rows_at_the_end():
    length_PG = Lengths(300.0, 0.5).draw(16, 8, 1024)
    assert length_PG.mean() == pytest.approx(300, rel=0.1)
    found = turns(length_PG, 16, ring_lengths(1024), shards=2)
    assert total(found) == length_PG.max() - 1
    assert sum(n.tokens * size.prompts * size.responses for size, n in found.items()) >= (length_PG - 1).sum()
    assert min(size.responses for size in found) == 2
    waiting = turns(length_PG, 4, ring_lengths(1024), shards=1)
    assert {size.prompts for size in waiting} == {4} and total(waiting) > total(found)


def test_the_kernel_that_reads_what_lives_costs_its_share_of_the_caches_and_the_trips_of_its_loop():
    text = """HloModule jit_decode

ENTRY %main (cache: bf16[64,256]) -> bf16[64,256] {
  %cache = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %attend_ring.1 = bf16[64,256]{1,0:T(8,128)(2,1)} custom-call(%cache), metadata={op_name="jit(x)/attention/call"}
}
"""
    chip, written = CHIPS["v5e"], {"attend_ring.1": Kernel(1010, 0.0, 1, 1000)}
    found = costs(parse(text), written, chip, live=Live(share=0.25, trips=6.0)).parts["attention"]
    assert found.bytes == 64 * 256 * 2 / 4
    assert found.core == pytest.approx((10 + 6 * 1000) / chip.clock)


@pytest.mark.faults
@pytest.mark.parametrize("text", ["", "-3", "300,0.5,1", "long", "300,9"])
def test_other_lengths_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^--lengths is a mean"):
        read_lengths(text)


def test_lengths_are_read_from_a_file_and_from_a_run(tmp_path):
    (tmp_path / "lengths.txt").write_text("3\n5\n")
    assert set(np.unique(read_lengths(str(tmp_path / "lengths.txt")).draw(4, 8, 100))) == {3, 5}
    (tmp_path / "metrics.jsonl").write_text('{"completions/mean_length": 40}\n{"completions/mean_length": 60}\n')
    assert read_lengths(str(tmp_path)).mean == 50.0


@pytest.mark.faults
def test_times_need_a_slice(capsys):
    assert main(["plan", "quickstart", "--memory", "8GiB", "--time"]) == 2
    assert "give --topology, such as v5e-8" in capsys.readouterr().err


def test_estimates_of_the_compiler_learn_from_what_was_compiled(monkeypatch):
    progress, now = Progress(28, 1), iter([0.0, 56.0])
    monkeypatch.setattr("grpo_jax.commands.plan.progress.time.monotonic", lambda: next(now, 56.0))
    before = progress.expected("decoding")
    with progress.during("decoding", "decoding"):
        pass
    assert progress.expected("decoding") == pytest.approx(2 * before)


@pytest.mark.long
@pytest.mark.slow
def test_attention_and_the_head_take_no_longer_than_they_did(capsys):
    """By the compiler's own code, for the config and the limits of `limits.json`."""
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    limits = json.loads((TPU / "limits.json").read_text())
    assert main([word.replace("configs/", f"{ROOT}/configs/") for word in limits["command"].split()[1:]]) == 0
    phases = json.loads(capsys.readouterr().out)["phases"]
    for phase, parts in limits["most_ms"].items():
        for part, most in parts.items():
            assert phases[phase]["parts"][part]["ms"] <= most, (phase, part)


@pytest.mark.slow
def test_the_page_has_the_table_of_the_figures_that_are_kept():
    printed = subprocess.run(
        [sys.executable, ROOT / "docs" / "table_time.py"], capture_output=True, text=True, check=True
    )
    assert printed.stdout in (ROOT / "docs" / "time.md").read_text()
