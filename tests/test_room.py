"""How many responses a device learns from at once, where nobody says: what is estimated, and that it is used."""

import re
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.plan.case import assemble
from grpo_jax.commands.plan.topology import find_slice
from grpo_jax.config import read
from grpo_jax.devices.mesh import Layout
from grpo_jax.learner import room
from grpo_jax.learner import update as learning
from grpo_jax.learner.microbatches import cut
from grpo_jax.models import tiny
from grpo_jax.objectives import dapo, grpo, real
from grpo_jax.rollout import Sampler

MODEL = tiny()
GIB = 2**30


def build(**changes) -> Algorithm:
    sampler = Sampler(MODEL.tokenizer.end_ids, responses=4, max_tokens=16)
    parts = {"objective": dapo(), "optimizer": optax.adam(1e-3)} | changes
    return Algorithm(
        parts.pop("policy", MODEL.policy), sampler, MODEL.tokenizer.decode, lambda example, response: 0.0, **parts
    )


@pytest.mark.slow
def test_the_estimate_is_near_the_peak_that_the_tpu_compiler_gave(tpu_config):
    """The compiled peak stands at the head of each config; the estimate may be 5 % below it and 20 % above."""
    pytest.importorskip("libtpu", reason="libtpu is large, and only tests of TPUs need it")
    path, topology = tpu_config
    compiled = float(re.search(r"learning ([\d.]+) GiB", path.read_text())[1])
    case = assemble(read(path), find_slice(topology))
    algorithm, P = case.algorithm, case.settings.prompts
    G, T, n = algorithm.engine.responses, algorithm.sample.max_tokens, algorithm.responses_at_once
    most = room.choices_of(P, G, case.mesh)[0]
    estimate = room.needed_bytes(algorithm, n, most, G, case.length, T, case.mesh) / GIB
    assert 0.95 * compiled < estimate < 1.2 * compiled


def test_choices_are_all_cuts_that_leave_every_device_the_same_work():
    assert room.choices_of(6, 4, None) == [24, 12, 8, 4, 2, 1]
    mesh = Layout(1, 8, 1).mesh()
    assert room.choices_of(16, 4, mesh) == [8, 4, 2, 1]
    assert room.choices_of(2, 8, mesh) == [2, 1]  # each group is spread over four devices
    for n in room.choices_of(16, 4, mesh):
        how = cut(16, 4, 1, n, mesh)
        assert how.subgroups // 8 * (4 // how.splits) == n


@pytest.mark.slow
def test_groups_stay_whole_if_the_loss_compares_their_responses():
    assert room.choices_of(6, 4, None, whole_groups=True) == [24, 12, 8, 4]
    assert room.what_fits(build(objective=real()), 6, 4, 32, 16, None, memory=1).responses_at_once == 4


def test_more_memory_never_means_fewer_responses_and_a_reference_needs_its_own():
    algorithm = build()
    fitting = [room.what_fits(algorithm, 8, 4, 32, 16, None, memory) for memory in (1, 10**7, 2 * 10**7, 10**10)]
    found = [each.responses_at_once for each in fitting]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1, 32)
    weights = sum(a.size * 4 for a in jax.tree.leaves(MODEL.policy.shapes))
    with_reference = build(objective=grpo())
    extra = room.needed_bytes(with_reference, 4, 32, 4, 32, 16, None) - room.needed_bytes(
        algorithm, 4, 32, 4, 32, 16, None
    )
    assert extra == weights


def test_remat_auto_keeps_as_much_as_fits(monkeypatch):
    """With memory for exactly what a policy needs, it is that policy, or a faster one with fewer responses at once."""
    monkeypatch.setattr(room, "LEAST_TOKENS", 8 * 16)
    monkeypatch.setattr(room, "FRACTION", 1.0)
    full, sizes = tiny(remat="auto").policy, (8, 4, 32, 16)
    algorithm = build(policy=full)
    assert list(full.faster) == ["products", "attention"]

    def needed(policy, n):
        return room.needed_bytes(algorithm, n, 32, 4, 32, 16, None, policy)

    def found(memory, algorithm=algorithm):
        fitting = room.what_fits(algorithm, *sizes, None, memory)
        assert fitting.policy is (full if fitting.remat is None else full.faster[fitting.remat])
        return fitting.remat, fitting.responses_at_once

    products, attention = full.faster.values()
    assert needed(products, 8) > needed(attention, 8) > needed(full, 8)
    assert found(needed(products, 32)) == ("products", 32)
    assert found(needed(products, 8)) == ("products", 8)
    assert found(needed(products, 8) - 1)[0] == "attention"  # products with fewer tokens are not worth it
    assert found(needed(attention, 8)) == ("attention", 8)
    assert found(needed(attention, 8) - 1)[0] is None
    asked = replace(algorithm, responses_at_once=16)
    assert found(needed(products, 16), asked) == ("products", 16)
    assert found(needed(products, 16) - 1, asked)[1] == 16  # what a user sets counts
    assert room.with_policy(algorithm, products) is room.with_policy(algorithm, products)


@pytest.mark.slow
def test_what_a_user_sets_counts_whatever_the_memory(monkeypatch):
    mesh = Layout().mesh(jax.devices()[:1])
    params, prompts = MODEL.params(mesh), MODEL.tokenizer.encode_all(["a", "b"], 32)
    algorithm = build()
    rollouts = algorithm.engine(MODEL.policy, params, prompts, jax.random.key(0))
    monkeypatch.setattr(room, "device_memory", lambda: 1)
    assert room.fitting(algorithm, params, rollouts).responses_at_once == 1
    assert room.fitting(replace(algorithm, responses_at_once=8), params, rollouts).responses_at_once == 8
    how, (microbatches,) = learning.microbatches(algorithm, params, rollouts)
    assert (how.subgroups, how.splits) == (1, 4) and len(microbatches) == 8
    seen = sorted(
        (p, g) for each in microbatches for p, group in zip(each.index_p, each.index_pg, strict=True) for g in group
    )
    assert seen == [(p, g) for p in range(2) for g in range(4)]
    assert all(np.count_nonzero(each.slots_PBW < 2 * 16) for each in microbatches)
