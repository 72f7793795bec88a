"""Tokens of some answers, with their log-probs, in the rows of a step."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax.distribution import Distribution
from grpo_jax.rewards import Mix
from grpo_jax.scoring import Rewards
from grpo_jax.structs import Rollouts, prompt_shapes
from grpo_jax.training import token_rows
from grpo_jax.training.token_rows import MOST, most_different, pieces, whole_characters, with_tokens

BYTES = gj.tiny(remat="none").tokenizer


def sentences(ids):
    """Decodes as some tokenizers do: words with a space before each, and none before the first."""
    return " ".join(f"w{number}" for number in ids)


@pytest.mark.parametrize(
    ("decode", "ids", "expected"),
    [
        (BYTES.decode, list(b"abc"), ["a", "b", "c"]),
        (BYTES.decode, [*"né".encode(), *BYTES.end_ids[:1]], ["n", "", "é", ""]),
        (BYTES.decode, [255, *b"a"], ["\ufffd", "a"]),
        (sentences, [3, 14, 15], ["w3", " w14", " w15"]),
        (BYTES.decode, [], []),
    ],
    ids=["letters", "a letter of two bytes, and the end", "no letter", "spaces between words", "nothing"],
)
def test_the_texts_of_the_tokens_add_up_to_the_answer(decode, ids, expected):
    found = pieces(decode, lambda token: decode([token]), ids)
    assert found == expected and "".join(found) == decode(ids)


def test_any_bytes_have_as_many_texts_as_tokens():
    random = np.random.default_rng(0)
    for _ in range(50):
        ids = random.integers(0, 256, size=12).tolist()
        found = pieces(BYTES.decode, functools.cache(lambda token: BYTES.decode([token])), ids)
        assert len(found) == 12


def test_a_long_answer_is_cut_between_characters():
    ids = list(("x" * (MOST - 1) + "é" * 9).encode())
    assert len(whole_characters(BYTES.decode, ids)) == MOST - 1
    assert whole_characters(BYTES.decode, ids[:MOST]) == ids[:MOST]


def test_the_groups_whose_rewards_differ_most_come_first():
    nan = float("nan")
    totals_pG = np.array([[1.0, 1.0], [0.0, 1.0], [nan, nan], [-2.0, 1.0], [nan, 5.0]])
    assert most_different(totals_pG, 2).tolist() == [3, 1]
    assert most_different(totals_pG, 0).tolist() == []
    assert most_different(totals_pG, 9).tolist() == [3, 1, 0, 4, 2]


def rollouts_of(texts):
    """Rollouts with the bytes of these texts as tokens."""
    P, G, T = len(texts), len(texts[0]), max(len(text) for group in texts for text in group)
    tokens_PGT, action_PGT = np.zeros((P, G, T), int), np.zeros((P, G, T), bool)
    for p, group in enumerate(texts):
        for g, text in enumerate(group):
            tokens_PGT[p, g, : len(text)], action_PGT[p, g, : len(text)] = list(text.encode()), True
    logprobs_PGT = jnp.where(action_PGT, -0.12345 - np.arange(P)[:, None, None], 0.0)
    known = (jnp.asarray(tokens_PGT), jnp.asarray(action_PGT), jnp.asarray(action_PGT), logprobs_PGT, logprobs_PGT)
    return Rollouts(prompt_shapes(P, 4), *known, jnp.ones((P, G), bool), Distribution(ends=(9,)))


def test_only_the_rows_of_the_chosen_groups_have_tokens():
    texts = [["ab", "cd"], ["ef", "g"]]
    rollouts = rollouts_of(texts)
    rewards = Rewards(np.array([[[0.5], [0.5]], [[0.0], [1.0]]], np.float32), texts=texts)
    rows = [{"completion": text} for group in texts for text in group]
    mix = Mix(((gj.rewards.exact, 1.0),))
    found = with_tokens(rows, rewards, rollouts, mix, BYTES.decode, 1)
    assert found[:2] == rows[:2]
    assert found[2] == {"completion": "ef", "tokens": ["e", "f"], "logprobs": [-1.123, -1.123]}
    assert found[3]["tokens"] == ["g"]
    assert with_tokens(rows, rewards, rollouts, mix, BYTES.decode, 0) == rows


@pytest.mark.parametrize(
    ("own", "index", "coloured"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3, 5], [3, 2]),
        ([4, 5, 6, 7], [4, 6, 7], [7, 6]),
        ([0, 1, 2, 3], [4, 5], []),
        ([4, 5, 6, 7], [], []),
    ],
    ids=["also texts of another host's devices", "texts of some of its own", "none of its own", "no texts"],
)
def test_a_host_gives_tokens_only_to_prompts_on_its_own_devices(own, index, coloured, monkeypatch):
    texts = [["7", "8"] for _ in range(8)]  # equal texts, so that tokens of another group would not be noticed
    own, index = np.array(own, int), np.array(index, int)
    monkeypatch.setattr(token_rows, "prompts_of_host", lambda mesh, P: own)
    monkeypatch.setattr(token_rows, "values_of_host", lambda array: np.asarray(array)[own])
    parts_PGR = np.stack([np.zeros(8), np.arange(8)], axis=1)[..., None].astype(
        np.float32
    )  # those of later prompts differ more
    rewards = Rewards(parts_PGR, texts=[texts[p] for p in index], index_p=index)
    rows = [{"p": int(p)} for p in index for _ in "78"]
    found = with_tokens(rows, rewards, rollouts_of(texts), Mix(((gj.rewards.exact, 1.0),)), BYTES.decode, 2)
    assert {row["p"] for row in found if "tokens" in row} == set(coloured)
    assert all(row["logprobs"] == [round(-0.12345 - row["p"], 3)] for row in found if "tokens" in row)
