"""The native sampler: prompts are read once for each group, then all rows decode together, in stages.

A stage is one compiled loop on the devices. Between stages the host collects the rows that have ended, compacts the
active ones into fewer rows, lengthens the cache when it is full, and admits waiting prompts, so that neither finished
rows nor empty cache cost time.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.devices.memory import free_bytes
from grpo_jax.devices.mesh import mesh_of, prompt_shards
from grpo_jax.devices.placing import from_hosts, on_host, prompts_of_host
from grpo_jax.devices.sharding import devices_per_group
from grpo_jax.distribution import Distribution, SamplingSettings
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rollout import stages, turns
from grpo_jax.rollout.buffer import ResponseBuffer
from grpo_jax.rollout.engine import Heard
from grpo_jax.rollout.reading import read_answers
from grpo_jax.rollout.serving import needed_bytes, repeated, row_keys, serve
from grpo_jax.rollout.sizes import (
    FEWEST_ROWS,
    compact,
    next_ring,
    next_shape,
    prefix_length,
    prompts_held,
    ring_lengths,
    row_shapes,
    subgroups_at_once,
)
from grpo_jax.structs import Params, Policy, Prompts, Rollouts, Rows, bucket

STOP_TOKENS = 16  # between two looks at the text for a stop string
HEARD_LOOKS = 16  # of the prompts held, one in so many has ended at each look, where somebody waits for groups


@dataclass(frozen=True)
class Sampler(SamplingSettings):
    """Answers each prompt `responses` times, until one of `ends`, a text in `stop`, or `max_tokens`."""

    ends: tuple[int, ...]
    responses: int = 8
    max_tokens: int = 256
    stop: tuple[str, ...] = ()  # texts that end a response, whatever its length
    at_once: int | None = None  # prompts held at once, others wait until rows end; null: all
    int8_cache: bool = False  # keys and values in half the memory of bfloat16; log-probs change a little
    decode: Callable[[Sequence[int]], str] | None = None  # the tokenizer's, to look for stop strings

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ends:
            raise ValueError("No end token is known, so no response could end: name at least one in `ends`.")
        check_range("responses", self.responses, least=1, most=WHOLE)
        check_range("max_tokens", self.max_tokens, least=1, most=WHOLE)
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, but max_tokens only {self.max_tokens}.")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is a tuple of texts, none of them empty, such as ('END',); got {self.stop!r}.")
        if self.stop and self.decode is None:
            raise ValueError("Stop strings are looked for in text: give the sampler the tokenizer's `decode`.")
        if self.at_once is not None:
            check_range("at_once", self.at_once, least=1, most=WHOLE)

    @cached_property
    def distribution(self) -> Distribution:
        """What the tokens are drawn from."""
        shared = {field.name: getattr(self, field.name) for field in fields(SamplingSettings)}
        return Distribution(ends=self.ends, **shared)

    def __call__(
        self,
        policy: Policy,
        params: Params,
        prompts: Prompts,
        key: Array,
        examples: Sequence[Any] = (),
        heard: Heard | None = None,
        partner: turns.Partner | None = None,
    ) -> Rollouts:
        """`responses` responses to each prompt. If the devices do not divide the prompts, each group is on several.

        `heard` is called for each of this host's prompts as soon as the last response to it has ended. With a
        `partner`, responses have several turns: it answers each reply.
        """
        prompts = replace(prompts, experts_PLNe=None)
        mesh, (P, G) = mesh_of(prompts), (len(prompts.tokens_PL), self.responses)
        spread = devices_per_group(P, G, mesh)
        key_PG = row_keys(key, P, G).reshape(P * spread, -1)
        divided = prompts if spread == 1 else repeated(prompts, spread, mesh)
        sampler = replace(self, responses=G // spread, at_once=subgroups_at_once(self.at_once, spread, hosts=1))
        sampler.check_room(policy, divided)
        served, own = serve(policy, params), divided
        if mesh is not None and jax.process_count() > 1:  # each host answers its own prompts, and waits for no other
            served, own = on_host((served, divided))
            index_p = prompts_of_host(mesh, P * spread)
            key_PG, params = key_PG[index_p], served
            sampler = replace(sampler, at_once=subgroups_at_once(self.at_once, spread, jax.process_count()))
        found = _Sampling(sampler, policy, params, served, own, key_PG, spread, heard, partner).finished()
        masks = found.valid_PGT, found.action_PGT
        arrays = (found.tokens_PGT, *masks, found.logprobs_PGT, found.entropy_PGT, found.ended_PG)
        placed = [from_hosts(a.reshape(-1, G, *a.shape[2:]), mesh) for a in arrays]
        rollouts = Rollouts(prompts, *placed, distribution=self.distribution)
        if found.experts_PGTNe is None or found.experts_PLNe is None:
            return rollouts
        experts_PGTNe = from_hosts(found.experts_PGTNe.reshape(-1, G, *found.experts_PGTNe.shape[2:]), mesh)
        read = replace(prompts, experts_PLNe=from_hosts(found.experts_PLNe[::spread], mesh))
        return replace(rollouts, prompts=read, experts_PGTNe=experts_PGTNe)

    @cached_property
    def stops(self) -> Callable[[Sequence[int]], bool] | None:
        """Whether a text contains a stop string; None where there are no such strings."""
        decode, stop = self.decode, self.stop
        if decode is None or not stop:
            return None
        return partial(_contains_any, decode, stop)

    def live_block(self, policy: Policy) -> int | None:
        """The positions of a block of the cache, if only blocks in use are read."""
        return None if self.int8_cache else policy.live_block

    def greedy(self) -> "Sampler":
        """The same sampler, giving the one likeliest answer."""
        return replace(self, temperature=0.0, responses=1)

    def check(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses prompts without room for responses, and greedy groups, whose responses would all be the same."""
        self.check_room(policy, prompts)
        if self.temperature == 0:
            raise ValueError("rollout.temperature 0 gives every response of a group the same tokens: use one above 0.")

    def with_room(self, policy: Policy, prompts: Prompts, multiple: int) -> "Sampler":
        """This sampler, holding fewer prompts at once if memory asks for it: about a half, a quarter and so on."""
        P = len(prompts.tokens_PL)
        at_once = prompts_held(P, self.at_once, shards=1)
        while at_once > multiple and self._needed(policy, at_once, prompts) > free_bytes():
            at_once = max(1, at_once // 2 // multiple) * multiple
        return replace(self, at_once=None if at_once == P else at_once)

    def check_room(self, policy: Policy, prompts: Prompts) -> None:
        """Refuses prompts that leave the model too few positions for the responses, or more cache than memory."""
        P, L = prompts.tokens_PL.shape
        if L + self.max_tokens > policy.max_positions:
            raise ValueError(
                f"Prompts of {L} tokens and responses of {self.max_tokens} need {L + self.max_tokens} positions;"
                f" the model has {policy.max_positions}. Lower max_tokens or shorten the prompts."
            )
        P = prompts_held(P, self.at_once, shards=1)
        needed, room = self._needed(policy, P, prompts), free_bytes()
        if needed > room:
            raise ValueError(
                f"The keys and values of {P} prompts with {self.responses} responses of {self.max_tokens} tokens, and"
                f" the copy of the weights, need {needed / 1e9:.1f} GB; there are {room / 1e9:.1f} GB. Hold fewer"
                " prompts at once (at_once), or lower responses or max_tokens."
            )

    def _needed(self, policy: Policy, P: int, prompts: Prompts) -> int:
        """Bytes on the devices of one host, which has its share of the prompts."""
        P, L = -(-P // jax.process_count()), prompts.tokens_PL.shape[1]
        ring = ring_lengths(self.max_tokens, self.live_block(policy))[-1]
        return needed_bytes(policy, P, L, self.responses, ring, self.int8_cache)


def _contains_any(decode: Callable[[Sequence[int]], str], stop: tuple[str, ...], ids: Sequence[int]) -> bool:
    """Whether the text of these ids contains one of the stop strings."""
    return any(text in decode(ids) for text in stop)


def native_sampler(engine: object) -> Sampler:
    """The engine, if it is the native sampler; any other is refused."""
    if not isinstance(engine, Sampler):
        raise ValueError("A plan is made for the native sampler, as only its memory is known; leave out rollout.use.")
    return engine


def programs() -> int:
    """How many programs of the sampler this process has needed, to read, decode, grow buffers and compact rows."""
    return _program.cache_info().currsize


class _Sampling:
    """One call of a sampler: what is on the devices, and what changes between stages."""

    def __init__(
        self,
        sampler: Sampler,
        policy: Policy,
        params: Params,
        served: Params,
        prompts: Prompts,
        key_PG: Array,
        spread: int,
        heard: Heard | None,
        partner: turns.Partner | None,
    ):
        (P, L), G, T = prompts.tokens_PL.shape, sampler.responses, sampler.max_tokens
        self.sampler, self.policy, self.params, self.prompts = sampler, policy, params, prompts
        self.spread, self.heard, self.partner = spread, heard, partner
        self.mesh = mesh_of(prompts)
        self.shards = prompt_shards(self.mesh) if self.mesh is not None else 1
        self.served, self.key_PG = served, key_PG
        block = sampler.live_block(policy)
        self.rings, self.L = ring_lengths(T if partner is None else turns.ring_tokens(T), block), prefix_length(L)
        self.padding = bucket(L) - L  # prompts are read at one of a few lengths
        held = prompts_held(P, sampler.at_once, self.shards)
        self.few = max(self.shards, held // 4 // self.shards * self.shards)  # prompts that are admitted together
        self.shapes = row_shapes(held, G, self.shards, 1 if block is None else FEWEST_ROWS)
        self.waiting = list(range(held, P))
        self.buffer = ResponseBuffer(P, G, T, held, padding=sampler.ends[0])
        self.shared, self.own, self.rows = self._begin(np.arange(held), self.rings[0])
        if partner is not None:
            self.rows = stages.conversing(self.rows, T, self.mesh)

    def finished(self) -> ResponseBuffer:
        """All responses, once every row has ended."""
        while (held_PG := self._decode()).any() or self.waiting:
            if self.waiting:
                held_PG = self._admit(held_PG)
            self._make_room(held_PG)
        return self.buffer

    def _begin(self, index_p: np.ndarray, S: int, only_first: bool = False) -> tuple[Any, Any, Rows]:
        """Prompts, read and with a first token for each response; `only_first` leaves room for no more."""
        sampler = self.sampler
        everyone = len(index_p) == len(self.prompts.tokens_PL)
        prompts = self.prompts if everyone else jax.tree.map(lambda a: a[index_p], self.prompts)
        if self.padding:
            prompts = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (self.padding, 0))), prompts)
        key_pG = self.key_PG if everyone else self.key_PG[index_p]
        shape = (self.L, sampler.responses, 1 if only_first else S)
        self._needs("read", *prompts.tokens_PL.shape, *shape)
        last_pD, shared, own = stages.read(self.policy, self.params, prompts, shape, sampler.int8_cache, self.mesh)
        if self.policy.experts is not None:
            self.buffer.read(index_p, self.policy.experts(shared), self.prompts.tokens_PL.shape[1])
        rows = stages.begin(
            self.policy,
            sampler.distribution,
            self.served,
            prompts if sampler.distribution.penalizes else None,
            last_pD,
            key_pG,
            sampler.max_tokens,
            shape[2],
            self.mesh,
        )
        return shared, own, rows

    def _needs(self, name: str, *sizes: int) -> None:
        _program(name, sizes, self.policy, self.sampler.distribution, self.L, self.sampler.int8_cache, self.mesh)

    def _decode(self) -> np.ndarray:
        """One stage; gives the rows that are active or wait for an answer after it. Finished rows are collected."""
        if self.partner is not None:
            self._go_on(self.partner)
        P, G, S = self.rows.tokens_PGS.shape
        self._needs("decode", P, G, S)
        smaller = self.shapes[self.shapes.index((P, G)) + 1 :][:1]
        narrow = smaller and not self.waiting and self.partner is None
        looks_at = int(self.rows.cursor) + STOP_TOKENS if self.sampler.stop else 2**30
        until = stages.Until(
            cursor=looks_at if self.partner is None else min(looks_at, turns.safe_cursor(self.buffer, self.rows)),
            prompts=smaller[0][0] // self.shards if narrow else -1,
            width=smaller[0][1] if narrow else 1,
            free=min(self.few if self.waiting and self.partner is None else P + 1, self._heard_at(P)),
        )
        self.own, self.rows = stages.decode(
            self.policy,
            self.sampler.distribution,
            self.served,
            self.shared,
            self.own,
            self.rows,
            self.sampler.max_tokens,
            until,
            self.mesh,
        )
        return self._collect()

    def _heard_at(self, P: int) -> int:
        """How many of the P prompts have no active row when the host looks for ended groups; never, if nobody waits."""
        if self.heard is None:
            return P + 1
        active_P = jax.device_get(self.rows.active_PG).any(axis=1)
        return P - int(active_P.sum()) + max(1, P // HEARD_LOOKS)

    def _collect(self) -> np.ndarray:
        experts = () if self.policy.experts is None else self.policy.experts(self.own)
        active_PG = self.buffer.collect(self.rows, self.sampler.stops, experts, getattr(self.partner, "replied", None))
        if self.sampler.stops is not None:
            self.rows = replace(self.rows, active_PG=jax.device_put(active_PG, self.rows.active_PG.sharding))
        if self.heard is not None:
            for p, ids in self.buffer.newly_complete(self.spread):
                self.heard(p, ids)
        return active_PG | self.buffer.waiting_PG

    def _go_on(self, partner: turns.Partner) -> None:
        """Rows whose answers have come begin to decode again; if no row decodes, waits for one."""
        while self.buffer.waiting_PG.any():
            active = jax.device_get(self.rows.active_PG).any()
            answers = partner.answers(wait=not active)
            self._lengthen(turns.longest_answered(self.buffer, answers))
            shards = 0 if self.policy.extend_block is None else self.shards
            change = turns.resumption(self.buffer, self.rows, answers, shards)
            if change is not None:
                self._resume(change)
            if active or (change is not None and change.begins_PG.any()):
                return

    def _resume(self, change: turns.Resumption) -> None:
        *of_rows, readings = change
        if self.rows.seen_PGV is not None and self.sampler.stops is not None:
            seen_PGV = turns.seen_again(self.rows.seen_PGV, self.buffer, self.prompts, change.begins_PG)
            self.rows = replace(self.rows, seen_PGV=jax.device_put(seen_PGV, self.rows.seen_PGV.sharding))
        self.rows = stages.resume(self.rows, *of_rows, mesh=self.mesh)
        if change.shift_PG.any():
            self.own = stages.one_by_one(lambda a: stages.move_cache(a, change.shift_PG, self.mesh), self._given("own"))
        if readings:
            self._needs("read_answers", *self.rows.tokens_PGS.shape)
            self.own = read_answers(
                self.policy, self.served, self.shared, self._given("own"), readings, self.shards, self.mesh
            )

    def _admit(self, active_PG: np.ndarray) -> np.ndarray:
        """Waiting prompts take the positions of prompts without active rows; gives the rows that are active then."""
        P = len(active_PG)
        active_PG = active_PG.copy()
        while self.waiting and (free := np.flatnonzero(~active_PG.any(axis=1))).size >= min(self.few, P):
            index_p = np.array(self.waiting[: self.few])
            del self.waiting[: self.few]
            position_p = np.full(self.few, P)  # a position beyond the last is ignored
            position_p[: len(index_p)] = free[: len(index_p)]
            padded = np.concatenate([index_p, np.repeat(index_p[:1], self.few - len(index_p))])
            shared, _, rows = self._begin(padded, 1, only_first=True)
            self.shared, self.rows = stages.admit(self.shared, self.rows, shared, rows, position_p, self.mesh)
            self.buffer.admit(free[: len(index_p)], index_p)
            active_PG[free[: len(index_p)]] = True
        return active_PG

    def _make_room(self, active_PG: np.ndarray) -> None:
        """Grows the ring buffers until active rows can go on, and compacts the rows if half of them would do."""
        longest = int(np.max(jax.device_get(self.rows.length_PG), where=active_PG, initial=0))
        while active_PG.any() and not self.waiting:
            P, G, _ = self.rows.tokens_PGS.shape
            shape = next_shape(self.shapes, (P, G), active_PG, self.shards)
            if shape == (P, G):
                break
            active_PG = self._compact(active_PG, shape)
        if active_PG.any():
            self._lengthen(longest)

    def _lengthen(self, longest: int) -> None:
        """Grows the ring buffers until a row of so many tokens can go on, or wait while others do."""
        longest += 0 if self.partner is None else turns.TURN_TOKENS
        while next_ring(self.rings, S := self.rows.tokens_PGS.shape[2], longest) != S:
            self._grow(self.rings[self.rings.index(S) + 1])

    def _grow(self, ring: int) -> None:
        P, G, S = self.rows.tokens_PGS.shape
        wrapped = int(self.rows.cursor) > S or self.partner is not None  # rows that have read may have a negative start
        self._needs("grow", P, G, S, wrapped)
        cursor = self.rows.cursor
        self.rows = stages.grow(self.rows, ring, wrapped, self.mesh)
        self.own = stages.one_by_one(
            lambda a: stages.grow_cache(a, cursor, ring, wrapped, self.mesh), self._given("own")
        )

    def _given(self, name: str) -> Any:
        """An attribute, to which no reference is kept, so that its arrays can be freed one by one."""
        return self.__dict__.pop(name)

    def _compact(self, active_PG: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Moves active rows together, into fewer; gives the rows that are active then."""
        self._needs("compact", *self.rows.tokens_PGS.shape)
        moved = compact(active_PG, shape, self.shards)
        source_p, row_pg, _ = moved
        self.rows = stages.compact(self.rows, *moved, shards=self.shards, mesh=self.mesh)
        self.own = stages.one_by_one(
            lambda a: stages.compact_cache(a, source_p, row_pg, self.shards, self.mesh), self._given("own")
        )
        self.shared = stages.one_by_one(
            lambda a: stages.compact_prompts(a, source_p, self.shards, self.mesh), self._given("shared")
        )
        self.buffer.compact(moved, self.shards)
        return moved.active_pg


@cache
def _program(name: str, sizes: tuple[int, ...], *shared: Any) -> None:  # cached: each is counted and logged once
    if name == "decode":
        logging.getLogger("grpo_jax").info("compiling the sampler: %d x %d rows, %d positions", *sizes)
