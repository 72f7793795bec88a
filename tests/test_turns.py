"""Responses of several turns in the native sampler: what is answered is read, and nothing else changes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.devices.mesh import Layout
from grpo_jax.devices.placing import place_prompts
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models import tiny
from grpo_jax.rollout import Sampler, stages
from grpo_jax.rollout.reading import worthwhile
from grpo_jax.structs import Prompts

MODEL = tiny()
ONE = Layout().mesh(jax.devices()[:1])
ENDS = tuple(range(64, 128))  # a quarter of the tokens, so that replies are short
SAMPLER = Sampler(ENDS, responses=4, max_tokens=96)


class Scripted:
    """Answers each reply with tokens that depend on the row and the turn, `late` looks after it was asked."""

    def __init__(self, turns=3, late=lambda row: 0, length=lambda row, turn: 3 + (5 * row + turn) % 11):
        self.turns, self.late, self.length = turns, late, length
        self.replies: dict[int, list[list[int]]] = {}
        self.given: dict[int, list[list[int]]] = {}
        self.due: dict[int, tuple[int, list[int] | None]] = {}
        self.looks = self.most_waiting = 0

    def replied(self, row, ids, room):
        assert row not in self.due and len(ids) > 0
        self.replies.setdefault(row, []).append(ids)
        if room == 0:
            return
        turn = len(self.replies[row])
        answer = [200 + (7 * row + 3 * turn + i) % 50 for i in range(self.length(row, turn))]
        over = turn > self.turns or len(answer) >= room
        self.due[row] = self.looks + self.late(row), None if over else answer

    def answers(self, wait):
        self.looks += 1
        self.most_waiting = max(self.most_waiting, len(self.due))
        if wait:
            self.looks = max(self.looks, min(when for when, _ in self.due.values()))
        found = {row: ids for row, (when, ids) in self.due.items() if when <= self.looks}
        for row, ids in found.items():
            del self.due[row]
            if ids is not None:
                self.given.setdefault(row, []).append(ids)
        return found


def prompts(P=4, L=12) -> Prompts:
    draw = np.random.default_rng(0)
    return Prompts(
        draw.integers(1, 250, (P, L)).astype(np.int32), np.arange(L)[None] >= draw.integers(0, 6, P)[:, None]
    )


def sampled(partner, sampler=SAMPLER, mesh=ONE, P=4):
    params, placed = MODEL.params(mesh), place_prompts(prompts(P), mesh)
    return params, sampler(MODEL.policy, params, placed, jax.random.key(1), partner=partner)


def turn_by_turn(partner, row, rollouts):
    """The tokens of a response and which of them the model chose, from what the partner heard and said."""
    tokens, chosen = [], []
    for turn, reply in enumerate(partner.replies[row]):
        said = partner.given.get(row, [])[turn] if turn < len(partner.given.get(row, [])) else []
        tokens += reply + said
        chosen += [True] * len(reply) + [False] * len(said)
    return tokens, chosen


def check(partner, rollouts):
    """Tokens are what was said on both sides, in order; masks say who said them."""
    tokens_XT, valid_XT, action_XT = (
        np.asarray(a).reshape(-1, a.shape[2]) for a in (rollouts.tokens_PGT, rollouts.valid_PGT, rollouts.action_PGT)
    )
    for row in range(len(tokens_XT)):
        tokens, chosen = turn_by_turn(partner, row, rollouts)
        assert tokens_XT[row][valid_XT[row]].tolist() == tokens
        assert valid_XT[row].tolist() == [True] * len(tokens) + [False] * (len(valid_XT[row]) - len(tokens))
        assert action_XT[row][: len(tokens)].tolist() == chosen and not action_XT[row][len(tokens) :].any()


def test_what_is_answered_is_read_and_log_probs_are_those_of_the_trainer():
    partner = Scripted()
    params, rollouts = sampled(partner)
    check(partner, rollouts)
    assert any(len(replies) == 4 for replies in partner.replies.values())
    logprobs_PGT, entropy_PGT = jax.jit(token_logprobs, static_argnums=0)(MODEL.policy, params, rollouts)
    np.testing.assert_allclose(rollouts.logprobs_PGT, logprobs_PGT, atol=2e-4)
    np.testing.assert_allclose(rollouts.entropy_PGT, entropy_PGT, atol=2e-4)
    given_PGT = np.asarray(rollouts.valid_PGT & ~rollouts.action_PGT)
    assert given_PGT.sum() == sum(len(ids) for said in partner.given.values() for ids in said) > 100
    np.testing.assert_array_equal(np.asarray(rollouts.logprobs_PGT)[given_PGT], 0)


@pytest.mark.parametrize(
    ("late", "change"),
    [
        (lambda row: 4 * (row % 3), {}),  # some rows wait while others decode for many steps
        (lambda row: 30 if row == 5 else 0, {}),  # one waits until the others' positions reach its own
        (lambda row: row % 2, {"at_once": 2}),
    ],
)
@pytest.mark.slow
def test_the_same_seed_gives_the_same_episodes_however_late_answers_come(late, change):
    partner, other = Scripted(), Scripted(late=late)
    _, expected = sampled(partner)
    _, rollouts = sampled(other, replace(SAMPLER, **change))
    check(other, rollouts)
    for name in ("tokens_PGT", "valid_PGT", "action_PGT", "ended_PG"):
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(expected, name))
    np.testing.assert_allclose(rollouts.logprobs_PGT, expected.logprobs_PGT, atol=1e-5)
    assert other.most_waiting > 1 or change


def long(row, turn):
    """Some answers are read by the decoding loop, some in one block and some in two."""
    return (5, 40, 150)[(row + turn * (row % 2)) % 3]


@pytest.mark.parametrize(
    ("change", "mesh", "P"),
    [
        ({}, ONE, 4),
        ({"at_once": 2, "repetition_penalty": 1.3}, ONE, 4),
        pytest.param({"int8_cache": True}, ONE, 4, marks=pytest.mark.long),
        pytest.param({"repetition_penalty": 1.3}, Layout(2, 2, 2).mesh(), 8, marks=pytest.mark.long),
    ],
    ids=["one device", "few at once, and a penalty", "int8", "a mesh, and a penalty"],
)
@pytest.mark.slow
def test_long_answers_read_in_blocks_lead_to_the_same_episodes_as_token_by_token(change, mesh, P):
    sampler = replace(SAMPLER, max_tokens=512, **change)
    partner, other = (Scripted(length=long, late=lambda row: row % 3) for _ in range(2))
    params, rollouts = sampled(partner, sampler, mesh, P)
    check(partner, rollouts)
    policy = replace(MODEL.policy, extend_block=None)
    expected = sampler(policy, params, place_prompts(prompts(P), mesh), jax.random.key(1), partner=other)
    for name in ("tokens_PGT", "valid_PGT", "action_PGT", "ended_PG"):
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(expected, name))
    rounded = 1e-3 if sampler.int8_cache else 1e-5
    np.testing.assert_allclose(rollouts.logprobs_PGT, expected.logprobs_PGT, atol=rounded)
    lengths = np.asarray(rollouts.valid_PGT).sum(axis=2)
    assert lengths.max() > 300 and lengths.min() < 100


def test_tokens_dropped_after_a_stop_string_are_not_penalized_in_later_replies():
    """The text is looked at every 16 tokens, so that some are drawn after the stop string and then dropped."""
    stops = tuple(chr(token) for token in range(130, 150))
    sampler = replace(
        SAMPLER, stop=stops, decode=lambda ids: "".join(map(chr, ids)), ends=(64,), repetition_penalty=1.5
    )
    partner = Scripted()
    params, rollouts = sampled(partner, sampler)
    check(partner, rollouts)
    assert any(chr(replies[0][-1]) in stops for replies in partner.replies.values())
    logprobs_PGT, _ = jax.jit(token_logprobs, static_argnums=0)(MODEL.policy, params, rollouts)
    np.testing.assert_allclose(rollouts.logprobs_PGT, logprobs_PGT, atol=2e-4)


def test_answers_are_read_in_blocks_where_that_is_less_work_than_their_tokens_one_by_one():
    assert worthwhile([32], 1) and worthwhile([200] * 16, 1) and worthwhile([40] * 64, 8)
    assert not worthwhile([40] * 64, 1) and not worthwhile([], 1)


def test_a_partner_that_says_nothing_leaves_one_turn():
    _, rollouts = sampled(Scripted(turns=0))
    expected = SAMPLER(MODEL.policy, MODEL.params(ONE), place_prompts(prompts(), ONE), jax.random.key(1))
    for name in ("tokens_PGT", "valid_PGT", "action_PGT", "ended_PG"):
        np.testing.assert_array_equal(getattr(rollouts, name), getattr(expected, name))
    np.testing.assert_allclose(rollouts.logprobs_PGT, expected.logprobs_PGT, atol=1e-5)


@pytest.mark.slow
def test_meshes_give_the_same_episodes():
    partner = Scripted(late=lambda row: row % 4)
    _, rollouts = sampled(partner, mesh=Layout(2, 2, 2).mesh(), P=8)
    check(partner, rollouts)
    _, expected = sampled(Scripted(), P=8)
    np.testing.assert_array_equal(rollouts.tokens_PGT, expected.tokens_PGT)
    np.testing.assert_array_equal(rollouts.action_PGT, expected.action_PGT)


def test_the_gradient_is_that_of_the_same_tokens_in_one_turn_with_the_answers_masked():
    """And tokens of the environment have exactly none: their log-probs do not move it."""
    params, rollouts = sampled(Scripted())
    draw = np.random.default_rng(0)
    weights_PGT = jnp.asarray(draw.normal(size=rollouts.tokens_PGT.shape), jnp.float32)

    @jax.jit
    def gradient(weights_PGT, rollouts):
        return jax.grad(lambda params: jnp.sum(weights_PGT * token_logprobs(MODEL.policy, params, rollouts)[0]))(params)

    one_turn = replace(rollouts, action_PGT=rollouts.valid_PGT)
    masked_PGT = jnp.where(rollouts.action_PGT, weights_PGT, 0.0)
    found, expected = gradient(weights_PGT, rollouts), gradient(masked_PGT, one_turn)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_rows_are_moved_in_place_each_by_its_own_number_of_positions():
    draw = np.random.default_rng(0)
    array, shift_PG = draw.normal(size=(4, 2, 3, 16, 5)).astype(np.float32), draw.integers(0, 20, (4, 2))
    shift_PG[1] = 0
    expected = np.stack(
        [
            [np.roll(row, by, axis=1) for row, by in zip(*pair, strict=True)]
            for pair in zip(array, shift_PG, strict=True)
        ]
    )
    np.testing.assert_array_equal(stages.move_cache(jnp.asarray(array), shift_PG, None), expected)
    mesh = Layout(2, 2, 2).mesh()
    placed = jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))))
    np.testing.assert_array_equal(stages.move_cache(placed, shift_PG, mesh), expected)


def test_an_answer_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match="leaves no room for a reply"):
        sampled(Endless())


class Endless(Scripted):
    def replied(self, row, ids, room):
        super().replied(row, ids, room)
        if room:
            self.due[row] = 0, [200] * room
