"""What can be known is checked before anything compiles: numbers, rows, groups, and functions of an objective."""

import inspect
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from grpo_jax import objectives, optimizers
from grpo_jax.algorithm import Algorithm
from grpo_jax.devices.mesh import Layout
from grpo_jax.distribution import Distribution
from grpo_jax.models import tiny
from grpo_jax.objectives import Objective, credit, grpo, scored_of
from grpo_jax.objectives.advantages import Advantage, unscaled
from grpo_jax.objectives.checking import check_group, check_objective
from grpo_jax.objectives.coefficients import Proportional, Stepwise
from grpo_jax.objectives.corrections import SequenceMask, SequenceTruncation, TokenMask, TokenTruncation
from grpo_jax.objectives.kl import KL, k3
from grpo_jax.objectives.ratios import BoundedProduct
from grpo_jax.objectives.shaping import SoftOverlong
from grpo_jax.objectives.terms import Term, entropy
from grpo_jax.ranges import check_range, float32
from grpo_jax.rewards import Mix, exact, needs
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts, Rollouts
from grpo_jax.tasks import Example, Task, jsonl
from grpo_jax.training.session import Settings, assemble

NAN, INF = math.nan, math.inf
NEVER = (NAN, INF, -INF, 1e308, -1e308)


def with_extremes(nonsense):
    """These values and, of the same type, what is not finite or too large for any device."""
    return (*nonsense, *(NEVER if isinstance(nonsense[0], float) else (10**40, -(10**40))))


# Numbers.


@pytest.mark.faults
@pytest.mark.parametrize(
    ("settings", "nonsense"),
    [
        ("steps", (0, -1)),
        ("prompts", (0, -1)),
        ("max_prompt_tokens", (0, -1)),
        ("seed", (-1, 2**32)),
        ("evaluate_every", (-1,)),
        ("evaluate_prompts", (0,)),
        ("save_every", (0,)),
        ("keep", (0,)),
        ("resample", (0, 10**6)),
        ("retire", (0.0, -1.0, 1e-320)),
    ],
)
def test_settings_of_training_that_make_no_sense_are_refused(settings, nonsense):
    for value in with_extremes(nonsense):
        with pytest.raises(ValueError, match=f"train.{settings} must be"):
            Settings(**({"steps": 1} | {settings: value}))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "nonsense"),
    [
        ("responses", (0, -1)),
        ("max_tokens", (0, -1)),
        ("at_once", (0,)),
        ("temperature", (-1.0, 1e-320, 1e-5, 1e3)),
        ("top_k", (-1,)),
        ("top_p", (0.0, -1.0, 1.5, 1e-320)),
        ("min_p", (-1.0, 1.0)),
        ("repetition_penalty", (0.0, -1.0, 1e-320, 1e3)),
        ("min_tokens", (-1,)),
    ],
)
def test_settings_of_a_sampler_that_make_no_sense_are_refused(setting, nonsense):
    for value in with_extremes(nonsense):
        with pytest.raises(ValueError, match=setting):
            Sampler((256,), **{setting: value})


@pytest.mark.faults
@pytest.mark.parametrize("stop", ["xyz", "", ("",), ("a", "")])
def test_a_text_where_texts_are_meant_is_refused(stop, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no check of types
    with pytest.raises(ValueError, match="stop is a tuple of texts"):
        Sampler((256,), stop=stop, decode=str)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("setting", "nonsense"),
    [
        ("learning_rate", (0.0, -1e-3, 2.0**31, 1e-320, 1e30)),
        ("warmup_steps", (-5, 2**31)),
        ("clip_norm", (0.0, -1.0)),
        ("b1", (-0.1, 1.0, 1.5, 1 - 1e-12)),
        ("b2", (-0.1, 1.0, 1.45, 1 - 1e-12)),
        ("epsilon", (0.0, -1.0, 1e-320)),
        ("weight_decay", (-1.0, 2.0)),
        ("decay", (0.0, -1.0, 1.5)),
    ],
)
def test_settings_of_an_optimiser_that_make_no_sense_are_refused(setting, nonsense):
    owner = optimizers.adafactor if setting == "decay" else optimizers.adamw
    for value in with_extremes(nonsense):
        with pytest.raises(ValueError, match=rf"optimizer\.{setting} must be"):
            owner(**{setting: value})


MAY_BE_NEGATIVE = {("nsr", "positive"), ("clip_cov", "low"), ("real", "right")}
MAY_BE_INFINITE = {("verifiable", "most"), ("icepop", "high")}  # no upper bound of a weight
NUMBERS = [
    (preset, name, (-1, 10**40) if isinstance(parameter.default, int) or name == "length" else (-0.2, *NEVER))
    for preset in objectives.PRESETS
    for name, parameter in inspect.signature(preset).parameters.items()
    if name not in ("kl_estimator", "kl_place", "metric", "gate", "filter_truncated")
]


@pytest.mark.faults
@pytest.mark.parametrize(("preset", "name", "nonsense"), NUMBERS, ids=lambda value: getattr(value, "__name__", value))
def test_no_number_of_a_preset_is_negative_or_not_finite(preset, name, nonsense):
    for value in nonsense[1:] if (preset.__name__, name) in MAY_BE_NEGATIVE else nonsense:
        if value == INF and (preset.__name__, name) in MAY_BE_INFINITE:
            continue
        with pytest.raises(ValueError, match=name):
            preset(**{name: value})


@pytest.mark.parametrize(
    "build",
    [
        lambda: TokenMask(low=2.0, high=1.0),
        lambda: TokenTruncation(high=0.0),
        lambda: SequenceMask(low=-1.0),
        lambda: SequenceTruncation(high=-INF),
        lambda: BoundedProduct(0.0),
        lambda: SoftOverlong(1.5),
        lambda: Term(NAN, entropy),
        lambda: KL(-1.0, k3),
        lambda: Proportional(target=0.0),
        lambda: Proportional(target=1.0, gain=9.0),
        lambda: Stepwise(target=NAN),
        lambda: Stepwise(target=1.0, least=2.0, most=1.0),
        lambda: replace(grpo(), distillation=-1.0),
        lambda: Mix(((exact, 1e308),)),
    ],
)
@pytest.mark.faults
def test_choices_of_an_objective_that_make_no_sense_are_refused(build):
    with pytest.raises(ValueError, match=r"must be|is a tuple"):
        build()


def test_useful_extremes_are_still_accepted():
    Settings(steps=2**31 - 1, seed=2**32 - 1, save_every=10**6, keep=10**6, retire=1.1, evaluate_every=0)
    Sampler((256,), temperature=0.0, top_p=1e-3, repetition_penalty=1.5, max_tokens=10**6)
    optimizers.adamw(learning_rate=1.0, b1=0.0, warmup_steps=0, epsilon=1e-30)
    objectives.dapo(clip_high=1e9, cap=None)
    objectives.grpo(kl=0.0)


def test_a_range_is_that_of_the_number_that_devices_compute_with():
    """NumPy's float32 is the oracle; numbers below its smallest normal one are zero on devices."""
    for value in (0.1, 1 / 3, -2.5, 1e-30, 3.4e38):
        assert float32(value) == float(np.float32(value))
    assert (float32(1e-320), float32(1e39), float32(2**40 + 1)) == (0.0, INF, 2**40 + 1)
    with pytest.raises(ValueError, match=r"x must be below 1; got 0\.9999999999, which is 1\.0 in float32"):
        check_range("x", 0.9999999999, below=1)


# Groups.


def answered(P: int, G: int, T: int = 3) -> Rollouts:
    action_PGT, number_PGT = jnp.ones((P, G, T), bool), jnp.zeros((P, G, T))
    prompts = Prompts(jnp.zeros((P, 2), jnp.int32), jnp.ones((P, 2), bool))
    tokens_PGT = jnp.zeros((P, G, T), jnp.int32)
    return Rollouts(
        prompts, tokens_PGT, action_PGT, action_PGT, number_PGT, number_PGT, jnp.ones((P, G), bool), Distribution()
    )


def teaches(objective: Objective, G: int) -> bool:
    """Whether any token of four groups with all kinds of rewards has an advantage and a weight."""

    rollouts = answered(4, G)
    rewards_PGR = jnp.asarray(np.linspace(0.1, 1.0, 4 * G).reshape(4, G, 1), jnp.float32)
    steps_PGT = jax.random.uniform(jax.random.key(1), (4, G, 3))
    scored = scored_of(rewards_PGR, jnp.ones(1), rollouts, steps_PGT=steps_PGT, greedy_P1=jnp.full((4, 1), 0.5))
    zero_PGT = jnp.zeros((4, G, 3))
    fixed = {f"{name}_logprobs_PGT": zero_PGT for name in ("old", "ref", "teacher")}
    batch = credit(objective, rollouts, scored, jax.random.key(0), **fixed)
    advantages = batch.advantages if batch.advantages.ndim == 3 else batch.advantages[:, :, None]
    return bool(jnp.any(advantages * batch.weights_PGT != 0))


@pytest.mark.faults
@pytest.mark.parametrize("preset", [p for p in objectives.PRESETS if p is not objectives.distillation])
@pytest.mark.slow
def test_a_group_of_one_is_refused_where_it_has_no_advantage_and_only_there(preset):
    if teaches(preset(), 1):
        check_group(preset(), 1)
    else:
        with pytest.raises(ValueError, match=r"needs at least [24], and would get 1.*Raise rollout.responses"):
            check_group(preset(), 1)
    check_group(preset(), 4)


def test_a_group_is_as_large_as_what_selection_keeps_and_as_what_is_drawn():
    with pytest.raises(ValueError, match="at least 2, and would get 1"):
        check_group(objectives.gfpo(keep=1), 8)
    with pytest.raises(ValueError, match="at least 6, and would get 4"):
        check_group(objectives.passk(k=6), 4)
    check_group(objectives.distillation(), 1)


# Functions of an objective.


def one_number(tokens):
    return jnp.sum(tokens.advantages_PGT * tokens.logprobs_PGT)


def by_response(tokens):
    return jnp.sum(tokens.advantages_PGT * tokens.logprobs_PGT, axis=2)


def kept_axis(tokens):
    return by_response(tokens)[:, :, None]


def of_numpy(tokens):
    return np.asarray(tokens.logprobs_PGT)


def mean_without_axis(scored):
    return scored.rewards_PG.mean(axis=1)


WRONG = {
    "a surrogate that gives one number": ({"surrogate": one_number}, r"objective\.surrogate must give float of shape"),
    "one for each response": ({"surrogate": by_response}, "one number for each response instead of one for each token"),
    "one for each response, kept": ({"surrogate": kept_axis}, r"kept_axis gave float32 of shape \(4, 4, 1\)"),
    "no array": ({"surrogate": lambda tokens: None}, "gave None"),
    "not JAX": ({"surrogate": of_numpy}, "of_numpy cannot be computed by JAX .* TracerArrayConversionError"),
    "an advantage for each prompt": (
        {"advantage": lambda scored: scored.rewards_PG.mean(axis=1, keepdims=True)},
        r"objective\.advantage must give float of shape \(4, 4\) or \(4, 4, 5\)",
    ),
    "a center that would be broadcast along the other axis": (
        {"advantage": Advantage(mean_without_axis, unscaled)},
        r"objective\.advantage\.center .* mean_without_axis gave float32 of shape \(4,\)",
    ),
    "a weighting that is a number": ({"weighting": lambda action, counted: jnp.ones(())}, r"objective\.weighting"),
    "a ratio of responses": ({"ratio": lambda difference, action: difference.sum(axis=2)}, r"objective\.ratio"),
    "a mask of numbers": (
        {"masks": (lambda tokens, key: tokens.entropy_PGT,)},
        r"objective\.masks\[0\] must give bool",
    ),
    "a correction of responses": ({"corrections": (by_response,)}, r"objective\.corrections\[0\]"),
    "a selection of prompts": (
        {"select": (lambda scored: scored.rewards_PG.max(axis=1) > 0,)},
        r"objective\.select\[0\] must give bool of shape \(4, 4\)",
    ),
    "pruning by numbers": (
        {"prune": (lambda scored, advantages: advantages,)},
        r"objective\.prune\[0\] must give bool",
    ),
    "shaping into an array": ({"shaping": (lambda scored: scored.rewards_PG,)}, "must return a Scored"),
    "an estimator of whole responses": (
        {"kl": KL(0.1, lambda new, old: (new - old).sum(axis=2))},
        r"objective\.kl\.estimator",
    ),
    "a term that is a number": ({"terms": (Term(0.1, one_number),)}, r"objective\.terms\[0\]\.value"),
    "a gate by a reward that is not there": (
        {"shaping": (objectives.rubric(gate=(3,)).shaping[0],)},
        "There are 2 rewards",
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize(("changes", "words"), WRONG.values(), ids=WRONG)
def test_a_function_that_does_not_fit_is_named_with_what_it_gave(changes, words):
    with pytest.raises(ValueError, match=words):
        check_objective(replace(grpo(), **changes), P=4, G=4, T=5, R=2)


@pytest.mark.parametrize("preset", objectives.PRESETS)
@pytest.mark.slow
def test_every_preset_passes_for_large_steps_without_computing_anything(preset):
    check_objective(preset(), P=512, G=64, T=32768, R=3)  # 1.07e9 numbers in each array


# Rows, and the session.


MODEL = tiny()


def session_of(rows, tmp_path, objective=None, held_out=None, reward=None, responses=4, **settings):
    """What is checked before a run, for a file of these rows."""

    def written(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    task = jsonl(written("rows.jsonl", rows), held_out=None if held_out is None else written("held.jsonl", held_out))
    return session_of_task(task, objective, reward, responses, **settings)


def session_of_task(task, objective=None, reward=None, responses=4, **settings):
    algorithm = Algorithm(
        policy=MODEL.policy,
        sample=Sampler(MODEL.tokenizer.end_ids, responses=responses, max_tokens=4),
        decode=MODEL.tokenizer.decode,
        reward=task.reward if reward is None else reward,
        objective=grpo() if objective is None else objective,
        optimizer=optimizers.adamw(),
    )
    layout = Layout(data=2, fsdp=1, tensor=4)
    return assemble(MODEL, task, algorithm, Settings(**({"steps": 2, "prompts": 4} | settings)), layout)


ROWS = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(16)]


@pytest.mark.faults
def test_a_late_row_that_a_reward_cannot_use_is_refused_by_file_and_line(tmp_path):
    rows = [*ROWS[:11], {"prompt": "11 + 1 =", "answer": " . "}, *ROWS[12:]]
    with pytest.raises(ValueError, match=r"rows\.jsonl:12: reward exact cannot score any response to it"):
        session_of(rows, tmp_path)
    with pytest.raises(ValueError, match=r"held\.jsonl:12: reward exact"):
        session_of(ROWS, tmp_path, held_out=rows)
    session_of(ROWS, tmp_path, held_out=rows, evaluate_prompts=11)  # the twelfth is never asked
    session_of(ROWS, tmp_path, held_out=rows, evaluate_every=0)


@pytest.mark.faults
def test_a_reward_of_your_own_says_what_it_needs(tmp_path):
    def has_level(example):
        if "level" not in example.columns:
            raise ValueError("it has no column level.")

    @needs(has_level)
    def by_level(example, response):
        return float(example.columns["level"])

    with pytest.raises(ValueError, match=r"rows\.jsonl:3: reward by_level .* it has no column level"):
        session_of([*({**row, "level": 1} for row in ROWS[:2]), *ROWS[2:]], tmp_path, reward=Mix(((by_level, 0.0),)))


def test_an_example_without_a_file_is_named_by_its_place():
    task = Task([Example("a", "1"), Example("b", "")] * 4, [], Mix(((exact, 1.0),)))
    with pytest.raises(ValueError, match="training example 1: reward exact"):
        session_of_task(task)


@pytest.mark.faults
def test_a_reward_that_cannot_score_held_out_rows_is_refused_before_the_first_evaluation(tmp_path):
    def hints(completions, hint):
        return [1.0 for _ in completions]

    rows = [{**row, "hint": "add"} for row in ROWS]
    session_of(rows, tmp_path, held_out=rows, reward=hints)
    with pytest.raises(ValueError, match="Reward hints needs hint"):
        session_of(rows, tmp_path, held_out=ROWS, reward=hints)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"responses": 1}, r"needs at least 2, and would get 1"),
        ({"responses": 1, "objective": objectives.verifiable()}, r"needs at least 2, and would get 1"),
        ({"prompts": 32}, "train.prompts must be at most .* got 32 prompts and 16 examples"),
        ({"prompts": 8, "responses": 1, "objective": objectives.reinforce_pp(), "resample": 2}, "train.resample"),
        ({"objective": replace(grpo(), surrogate=one_number)}, r"objective\.surrogate must give float of shape"),
        ({"max_prompt_tokens": 4}, r"Prompt 0 \(.*rows\.jsonl:1\) has \d+ tokens, and the limit is 4"),
    ],
)
def test_what_needs_more_than_one_part_is_refused_before_weights_are_loaded(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        session_of(ROWS, tmp_path, **changes)


def test_one_response_is_enough_where_no_group_is_compared(tmp_path):
    session_of(ROWS, tmp_path, responses=1, prompts=8, objective=objectives.reinforce_pp())
    session_of(ROWS, tmp_path, responses=1, prompts=8, objective=objectives.remax())


def test_where_an_example_was_read_is_in_no_fingerprint():
    assert repr(Example("a", source="rows.jsonl:1")) == repr(Example("a"))
    assert Example("a", source="rows.jsonl:1") == Example("a", source="other.jsonl:7")
