"""A sampler of conversations that reads all again for each reply: slow, and simple enough to trust."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import place_prompts
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts, Rollouts, bucket


@dataclass(frozen=True)
class ReadingAgain:
    """An engine that asks the native sampler for one reply of every conversation at a time."""

    sampler: Sampler

    @property
    def responses(self):
        return self.sampler.responses

    def greedy(self):
        return ReadingAgain(self.sampler.greedy())

    def with_room(self, policy, prompts, multiple):
        return self

    def check(self, policy, prompts):
        self.sampler.check(policy, prompts)

    def __call__(self, policy, params, prompts, key, examples=(), heard=None, partner=None):
        P, G, T = len(prompts.tokens_PL), self.responses, self.sampler.max_tokens
        once, talks = replace(self.sampler, responses=1), [_Talk(prompts, n // G) for n in range(P * G)]
        mesh, number, active = mesh_of(prompts), 0, set(range(P * G))
        while active:
            found = once(policy, params, _prompts([talk.ids for talk in talks], mesh), jax.random.fold_in(key, number))
            number += 1
            waiting = {row for row in active if talks[row].reply(found, row, T)}
            for row in sorted(active):
                partner.replied(row, talks[row].last, T - talks[row].length if row in waiting else 0)
            active = set()
            while waiting:
                for row, ids in partner.answers(wait=True).items():
                    waiting.discard(row)
                    if ids is not None:
                        talks[row].read(ids)
                        active.add(row)
        found = _rollouts(prompts, talks, G, T, self.sampler)
        return found if mesh is None else place_prompts(found, mesh)


class _Talk:
    def __init__(self, prompts, p):
        self.ids = np.asarray(prompts.tokens_PL[p])[np.asarray(prompts.valid_PL[p])].tolist()
        self.begin, self.action, self.logprobs, self.entropy, self.ended = len(self.ids), [], [], [], False

    @property
    def length(self):
        return len(self.ids) - self.begin

    def reply(self, found, row, T):
        """Appends a reply, cut at the most tokens of a response; whether it ended before."""
        count = min(int(found.action_PGT[row, 0].sum()), T - self.length)
        self.last = np.asarray(found.tokens_PGT[row, 0, :count]).tolist()
        self.ended = bool(found.ended_PG[row, 0]) and count == int(found.action_PGT[row, 0].sum())
        self.ids += self.last
        self.action += [True] * count
        self.logprobs += np.asarray(found.logprobs_PGT[row, 0, :count]).tolist()
        self.entropy += np.asarray(found.entropy_PGT[row, 0, :count]).tolist()
        return self.ended and self.length < T

    def read(self, ids):
        self.ids += ids
        self.action += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.entropy += [0.0] * len(ids)


def _prompts(rows, mesh):
    L = bucket(max(map(len, rows)))
    tokens_PL, valid_PL = np.zeros((len(rows), L), np.int32), np.zeros((len(rows), L), bool)
    for row, ids in enumerate(rows):
        tokens_PL[row, L - len(ids) :], valid_PL[row, L - len(ids) :] = ids, True
    return Prompts(tokens_PL, valid_PL) if mesh is None else place_prompts(Prompts(tokens_PL, valid_PL), mesh)


def _rollouts(prompts, talks, G, T, sampler):
    def padded(values, dtype):
        rows = [np.pad(np.asarray(each, dtype), (0, T - len(each))) for each in values]
        return jnp.asarray(np.stack(rows).reshape(-1, G, T))

    ids = [talk.ids[talk.begin :] for talk in talks]
    return Rollouts(
        prompts,
        padded(ids, np.int32),
        padded([[True] * len(each) for each in ids], bool),
        padded([talk.action for talk in talks], bool),
        padded([talk.logprobs for talk in talks], np.float32),
        padded([talk.entropy for talk in talks], np.float32),
        jnp.asarray(np.array([talk.ended for talk in talks]).reshape(-1, G)),
        sampler.distribution,
    )
