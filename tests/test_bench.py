"""The benchmark command: its figures add up, and its roof is the one worked out by hand."""

import json
from argparse import Namespace
from dataclasses import replace

import jax
import numpy as np
import pytest

from grpo_jax.cli import main, parse
from grpo_jax.commands.bench.command import load_model
from grpo_jax.commands.bench.rollout import build_sampler, find_roof
from grpo_jax.commands.bench.train import build_algorithm, random_answers, useful_flop
from grpo_jax.models import SHAPES, decoder_policy
from grpo_jax.objectives import credit

pytestmark = pytest.mark.slow  # runs benchmarks

FEW = ["--model", "tiny", "--prompts", "8", "--responses", "2", "--prompt-tokens", "8", "--repeat", "1"]


def test_a_rollout_is_measured_and_written(capsys):
    assert main(["bench", "rollout", *FEW, "--response-tokens", "6", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert figures["tokens"] == 8 * 2 * 6
    assert figures["rollout_tokens_per_s"] == pytest.approx(figures["tokens"] / figures["rollout_s"])
    assert figures["prefill_s"] + figures["decode_s"] == pytest.approx(figures["rollout_s"])
    assert figures["roof_fraction"] == pytest.approx(figures["rollout_tokens_per_s"] / figures["roof_tokens_per_s"])
    assert figures["compile_s"] > 0 and figures["arguments"]["model"] == "tiny"
    assert "8 prompts of 8 tokens, 2 responses of 6" in printed.err and "tokens/s" in printed.err


def test_an_int8_cache_is_measured_by_what_it_does_to_log_probs(capsys):
    assert main(["bench", "rollout", *FEW, "--response-tokens", "6", "--int8-cache", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert 0 < figures["logprob_gap_mean"] < figures["logprob_gap_max"] < 0.1
    assert "nats from the trainer's" in printed.err


def test_a_benchmark_learns_from_all_of_its_answers_though_none_ends():
    arguments = parse(["bench", "step", *FEW, "--response-tokens", "6"])
    subject = load_model(arguments)
    algorithm = build_algorithm(arguments, subject)
    rollouts, scored = random_answers(arguments, subject, algorithm)
    cut_off = replace(scored, ended_PG=jax.numpy.zeros((8, 2), bool))
    assert credit(algorithm.objective, rollouts, cut_off, jax.random.key(0)).rollouts.action_PGT.all()


@pytest.mark.parametrize("what", ["train", "step"])
def test_learning_is_measured_and_written(what, capsys):
    assert main(["bench", what, *FEW, "--response-tokens", "6", "--responses-at-once", "8", "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert figures["compile_s"] > 0 and figures["peak_bytes"] > 1e8
    assert f"{figures[f'{what}_step_s' if what == 'train' else 'step_s']:.2f} s" in printed.err
    if what == "train":
        assert figures["tokens"] == 8 * (8 + 2 * 6)
        assert figures["train_tokens_per_s"] == pytest.approx(figures["tokens"] / figures["train_step_s"])
        rate = figures["useful_flop"] / figures["train_step_s"]
        assert figures["mfu"] == pytest.approx(rate / figures["matmul_flop_per_s"])


def test_useful_arithmetic_is_that_of_a_calculation_by_hand():
    asked = Namespace(prompts=4, prompt_tokens=48)
    flop = useful_flop(SHAPES["smollm2-135m"], asked, np.full((4, 8), 64))
    # 192 prompt tokens and 2,048 of responses through 106.2 M weights, the latter through 28.3 M of the head too;
    # each prompt token attends to 24 on average, each response token to 48 + 32, at 4 FLOP a channel.
    attention = 4 * 30 * 9 * 64 * (192 * 24 + 2048 * 80)
    assert flop == pytest.approx(6 * (106.168e6 * 2240 + 28.312e6 * 2048) + 3 * attention, rel=1e-3)


def test_the_roof_is_that_of_a_calculation_by_hand():
    asked = Namespace(prompts=4, responses=8, prompt_tokens=48)
    shape = SHAPES["smollm2-135m"]
    roof = find_roof(shape, asked, 4.0 * 8 * 64, np.dtype("float32"), matmul=200e9, memory=1e15)
    # 106.2 M weights in the layers, 28.3 M in the head; 30 layers of 9 heads of 64 attend, at 4 FLOP a channel.
    attention = 4 * 30 * 9 * 64
    assert roof.prefill_s == pytest.approx((4 * 48 * (2 * 106.168e6 + attention * 24) + 8 * 28.31e6) / 200e9, rel=1e-3)
    assert roof.decode_s == pytest.approx(2048 * (2 * 134.48e6 + attention * 80) / 200e9, rel=1e-3)
    bound = find_roof(shape, asked, 4.0 * 8 * 64, np.dtype("float32"), matmul=1e18, memory=20e9)
    # 538 MB of weights a turn, 192 positions of prompts and on average 1024 of responses at 46 kB.
    assert bound.decode_s == pytest.approx(64 * (537.9e6 + (192 + 1024) * 46080) / 20e9, rel=1e-3)


def test_shapes_have_the_sizes_of_their_names():
    for name, millions in {
        "smollm2-135m": 134.5,
        "qwen3-0.6b": 596,
        "qwen3-4b": 4022,
        "qwen2.5-1.5b": 1543.7,
        "llama-3.1-8b": 8030,
        "gemma-2b": 2506.2,
        "gemma-2-2b": 2614.3,
        "gemma-3-270m": 268.1,
        "gemma-3-1b": 999.9,
        "smollm3-3b": 3075.1,
        "olmo-2-0425-1b": 1484.9,
        "olmo-3-7b": 7298,
        "phi-3-mini-4k": 3821.1,
        "granite-3.3-2b": 2533.5,
        "glm-4-9b-0414": 9400.3,
        "exaone-4.0-1.2b": 1279.4,
    }.items():
        params = jax.eval_shape(decoder_policy(SHAPES[name]).init, jax.random.key(0))
        assert sum(a.size for a in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_random_ends_come_after_the_asked_number_of_tokens_on_average():
    asked = Namespace(responses=4, response_tokens=512, mean_tokens=64, int8_cache=False)
    sampler = build_sampler(asked, SHAPES["smollm2-135m"])
    assert len(set(sampler.ends)) == 49152 // 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "random:gpt5"], "There is no shape 'gpt5'"),
        (["--model", "tiny", "--prompts", "8", "--prompt-tokens", "2000"], "need 2064 positions; the model has 1024"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, words, capsys):
    for what in ("rollout", "train"):
        assert main(["bench", what, *arguments]) == 2
        assert words in capsys.readouterr().err


def test_responses_at_once_that_do_not_divide_are_rounded_down(capsys):
    assert main(["bench", "train", *FEW, "--response-tokens", "6", "--responses-at-once", "3", "--repeat", "1"]) == 0
    assert "learning" in capsys.readouterr().out


def test_a_count_has_to_be_positive(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "rollout", "--prompts", "0"])
    assert "at least 1" in capsys.readouterr().err
