"""Samplers of conversations that are simple enough to trust: one reads all again for each reply, one says what it is
told to.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.devices.mesh import mesh_of
from grpo_jax.devices.placing import place_prompts
from grpo_jax.distribution import Distribution
from grpo_jax.rollout import Sampler
from grpo_jax.structs import Prompts, Rollouts, bucket


class Talk:
    """The tokens of a row so far."""

    def __init__(self, prompts, p):
        self.ids = np.asarray(prompts.tokens_PL[p])[np.asarray(prompts.valid_PL[p])].tolist()
        self.begin, self.action, self.logprobs, self.entropy, self.ended = len(self.ids), [], [], [], False

    @property
    def length(self):
        return len(self.ids) - self.begin

    def add(self, ids, action, logprobs, entropy):
        self.ids += ids
        self.action += [action] * len(ids)
        self.logprobs += logprobs
        self.entropy += entropy


class Engine:
    """Asks for one reply of every conversation at a time; `once` gives their ids, log-probs, entropies and ends."""

    def with_room(self, policy, prompts, multiple):
        return self

    def check(self, policy, prompts):
        """There is room for anything."""

    def __call__(self, policy, params, prompts, key, examples=(), heard=None, partner=None):
        P, G, T = len(prompts.tokens_PL), self.responses, self.max_tokens
        mesh, number, active = mesh_of(prompts), 0, set(range(P * G))
        talks = [Talk(prompts, n // G) for n in range(P * G)]
        while active:
            replies = self.once(policy, params, talks, jax.random.fold_in(key, number), mesh)
            number += 1
            for row in sorted(active):
                ids, logprobs, entropy, ended = replies[row]
                count, talk = min(len(ids), T - talks[row].length), talks[row]
                talk.ended = ended and count == len(ids)
                talk.add(ids[:count], True, logprobs[:count], entropy[:count])
                partner.replied(row, ids[:count], T - talk.length if talk.ended else 0)
            waiting = {row for row in active if talks[row].ended and talks[row].length < T}
            active = set()
            while waiting:
                for row, ids in partner.answers(wait=True).items():
                    waiting.discard(row)
                    if ids is not None:
                        talks[row].add(ids, False, [0.0] * len(ids), [0.0] * len(ids))
                        active.add(row)
        found = rollouts_of(prompts, talks, G, T, self.distribution)
        return found if mesh is None else place_prompts(found, mesh)


@dataclass(frozen=True)
class ReadingAgain(Engine):
    """Samples from the model, which reads all of a conversation again for each reply."""

    sampler: Sampler

    @property
    def responses(self):
        return self.sampler.responses

    @property
    def max_tokens(self):
        return self.sampler.max_tokens

    @property
    def distribution(self):
        return self.sampler.distribution

    def greedy(self):
        return ReadingAgain(self.sampler.greedy())

    def once(self, policy, params, talks, key, mesh):
        prompts = prompts_of([talk.ids for talk in talks])
        prompts = prompts if mesh is None else place_prompts(prompts, mesh)
        found = replace(self.sampler, responses=1)(policy, params, prompts, key)
        counts, ended = np.asarray(found.action_PGT).sum(axis=2)[:, 0], np.asarray(found.ended_PG)[:, 0]
        arrays = [np.asarray(a)[:, 0] for a in (found.tokens_PGT, found.logprobs_PGT, found.entropy_PGT)]
        return [(*(a[n, : counts[n]].tolist() for a in arrays), bool(ended[n])) for n in range(len(talks))]


@dataclass(frozen=True)
class Saying(Engine):
    """Says texts one after the other, each row those of its place in its group, with an end token after each."""

    encode: object
    end: int
    texts: tuple
    max_tokens: int = 512

    distribution = Distribution()

    @property
    def responses(self):
        return len(self.texts)

    def greedy(self):
        return Saying(self.encode, self.end, self.texts[:1], self.max_tokens)

    def once(self, policy, params, talks, key, mesh):
        said = []
        for n, talk in enumerate(talks):
            pairs = zip(talk.ids[talk.begin :], talk.action, strict=True)
            number = sum(action and token == self.end for token, action in pairs)
            texts = self.texts[n % len(self.texts)]
            ids = [*self.encode(texts[min(number, len(texts) - 1)]), self.end]
            said.append((ids, [-1.0] * len(ids), [1.0] * len(ids), True))
        return said


def prompts_of(rows):
    """Rows of ids, padded on the left."""
    L = bucket(max(map(len, rows)))
    tokens_PL, valid_PL = np.zeros((len(rows), L), np.int32), np.zeros((len(rows), L), bool)
    for row, ids in enumerate(rows):
        tokens_PL[row, L - len(ids) :], valid_PL[row, L - len(ids) :] = ids, True
    return Prompts(tokens_PL, valid_PL)


def rollouts_of(prompts, talks, G, T, distribution):
    """Conversations as a batch."""

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
        distribution,
    )
