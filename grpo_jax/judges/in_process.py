"""A language model on the devices that train, as a judge that generates nothing.

A criterion is a question whose possible answers are known, so one forward pass is enough: the probabilities, among
these, of the first tokens in which the answers differ, at the position where the reply begins. An answer and its G
questions are a prompt with G responses in one row: what they have in common, above all the answer, is read once.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from grpo_jax.devices.mesh import Layout, own_mesh, prompt_shards
from grpo_jax.devices.placing import place_prompts
from grpo_jax.devices.programs import program
from grpo_jax.distribution import EXCLUDED
from grpo_jax.judges.asking import about, question
from grpo_jax.models import load
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards.rubrics import Asked, Judge, Sheet
from grpo_jax.structs import Params, Policy, Prompts, bucket


def model(
    name: str,  # a directory, org/name, a run, or smollm2-135m-instruct, as for the model that is trained
    activations: Literal["auto", "float32", "bfloat16"] = "auto",
    template: dict[str, Any] | None = None,  # of the chat template, e.g. {enable_thinking: false}
    max_tokens: int = 4096,  # of a question with its answer; where there are more, there is no verdict
    at_once: int = 16,  # answers that each device judges at once, each with all of its questions
    mesh: Mesh | None = None,
) -> Judge:
    """A model in this process, loaded and divided over the devices as a teacher is."""
    loaded = load(name, activations, template=template)
    mesh = Layout().mesh(jax.local_devices()) if mesh is None else own_mesh(mesh, jax.process_index())
    return ModelJudge(loaded.policy, loaded.params(mesh), loaded.tokenizer, mesh, max_tokens, at_once)


class Row(NamedTuple):
    """The tokens of a sheet: what all questions begin with, the rest of each, and a token of each answer."""

    prefix: list[int]
    rests: list[list[int]]
    answers: list[list[int]]


@dataclass(frozen=True, eq=False)
class ModelJudge:
    """Asks a policy. Each host asks with its own devices, so hosts need not have equally many answers."""

    policy: Policy
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh
    max_tokens: int
    at_once: int

    def __post_init__(self) -> None:
        check_range("judge.max_tokens", self.max_tokens, least=1, most=WHOLE)
        check_range("judge.at_once", self.at_once, least=1, most=WHOLE)

    @cached_property
    def limit(self) -> int:
        """The most tokens of a question with its answer."""
        return min(self.max_tokens, self.policy.max_positions)

    def check(self, sheet: Sheet) -> None:
        """Refuses questions that do not fit even without an answer, and answers that begin with the same token."""
        row = self.read(sheet)
        for asked, answers in zip(sheet.criteria, row.answers, strict=True):
            if len(set(answers)) < len(answers):
                raise ValueError(
                    f"The judge tells answers apart by how they begin, and among those of {asked.name},"
                    f" {', '.join(map(repr, asked.answers))}, two begin alike. Begin them with other words."
                )
        if _length(row) > self.limit:
            raise ValueError(
                f"A question to the judge has {_length(row)} tokens before there is any answer in it, and the limit is"
                f" {self.limit}. Raise judge.max_tokens, or use a judge with more positions, or shorter prompts."
            )

    def judge(self, sheets: Sequence[Sheet]) -> list[list[float | None]]:
        """The expected value of each answer: with no and yes, the probability of yes."""
        rows = [self.read(sheet) for sheet in sheets]
        fitting = [index for index, row in enumerate(rows) if _length(row) <= self.limit]
        values: list[list[float | None]] = [[None] * len(sheet.criteria) for sheet in sheets]
        if len(fitting) < len(rows):
            said = "%d of %d answers are longer than the judge reads (judge.max_tokens), and have no verdict"
            logging.getLogger("grpo_jax").warning(said, len(rows) - len(fitting), len(rows))
        pieces = list(self._probabilities([rows[index] for index in fitting]))  # all are under way before one is read
        found = [row_GX for piece in pieces for row_GX in np.asarray(piece, np.float64)]
        for index, row_GX in zip(fitting, found, strict=False):
            for g, asked in enumerate(sheets[index].criteria):
                X = len(asked.answers)
                values[index][g] = float(np.dot(row_GX[g, :X], np.arange(X)) / (X - 1))
        return values

    def read(self, sheet: Sheet) -> Row:
        """The tokens of a sheet."""
        begun = [self._beginnings(asked) for asked in sheet.criteria]
        pairs = zip(sheet.criteria, begun, strict=True)
        whole = [self._encode(about(sheet) + question(asked)) + shared for asked, (shared, _) in pairs]
        common = _common(whole)
        return Row(whole[0][:common], [ids[common:] for ids in whole], [answers for _, answers in begun])

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer.has_chat_template:
            return self.tokenizer.encode([{"role": "user", "content": text}])
        return self.tokenizer.encode(f"{text}\nReply:")

    def _beginnings(self, asked: Asked) -> tuple[list[int], list[int]]:
        """The tokens that all answers begin with, if any, and the next one of each, which tells them apart. A model
        without a chat template writes a space first.
        """
        space = "" if self.tokenizer.has_chat_template else " "
        options = {"add_special_tokens": False, "split_special_tokens": True}
        ids = [self.tokenizer.backend(f"{space}{answer}", **options)["input_ids"] for answer in asked.answers]
        shared = _common(ids)
        return ids[0][:shared], [each[shared] for each in ids]

    def _probabilities(self, rows: Sequence[Row]) -> Iterator[Array]:
        """The probabilities of the answers to all questions, in pieces of at most `at_once` rows for each device."""
        if not rows:
            return
        shards = prompt_shards(self.mesh)
        each = min(self.at_once, 1 << (-(-len(rows) // shards) - 1).bit_length())
        L = bucket(max(len(row.prefix) for row in rows))
        T = bucket(max(sum(map(len, row.rests)) for row in rows))
        G, X = max(len(row.rests) for row in rows), max(len(ids) for row in rows for ids in row.answers)
        for start in range(0, len(rows), each * shards):
            some = rows[start : start + each * shards]
            padded = [*some, *[some[-1]] * (each * shards - len(some))]
            yield _answer_probabilities(
                self.policy, self.params, *place_prompts(_arrays(padded, L, G, T, X), self.mesh)
            )


@program(static_argnames=("policy",))
def _answer_probabilities(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens_P1T: Int[Array, "P 1 T"],
    start_P1T: Int[Array, "P 1 T"],
    length_P: Int[Array, " P"],
    last_PG: Int[Array, "P G"],
    answers_PGX: Int[Array, "P G X"],
    known_PGX: Bool[Array, "P G X"],
) -> Float[Array, "P G X"]:
    """The probability of each answer among those that are known, as the next token after each question."""
    valid_P1T = jnp.arange(tokens_P1T.shape[2])[None, None] < length_P[:, None, None]
    _, hidden_P1TD = policy.respond(params, prompts, tokens_P1T, valid_P1T, start_P1T)
    logits_PGV = policy.unembed(params, jnp.take_along_axis(hidden_P1TD[:, 0], last_PG[..., None], axis=1))
    chosen_PGX = jnp.take_along_axis(logits_PGV, answers_PGX, axis=2)
    return jax.nn.softmax(jnp.where(known_PGX, chosen_PGX, EXCLUDED), axis=2)


def _arrays(rows: Sequence[Row], L: int, G: int, T: int, X: int) -> tuple[Any, ...]:
    """The rows as arrays: prefixes padded on the left, and what follows on the right, one question after the other."""
    P = len(rows)
    tokens_PL, valid_PL = np.zeros((P, L), np.int32), np.zeros((P, L), bool)
    tokens_P1T, length_P = np.zeros((P, 1, T), np.int32), np.zeros(P, np.int32)
    start_P1T, last_PG = np.zeros((P, 1, T), np.int32), np.zeros((P, G), np.int32)
    answers_PGX, known_PGX = np.zeros((P, G, X), np.int32), np.zeros((P, G, X), bool)
    for p, row in enumerate(rows):
        tokens_PL[p, L - len(row.prefix) :] = row.prefix
        valid_PL[p, L - len(row.prefix) :] = True
        for g, (rest, answers) in enumerate(zip(row.rests, row.answers, strict=True)):
            begin, end = length_P[p], length_P[p] + len(rest)
            tokens_P1T[p, 0, begin:end], start_P1T[p, 0, begin:end] = rest, begin
            length_P[p], last_PG[p, g] = end, end - 1
            answers_PGX[p, g, : len(answers)], known_PGX[p, g, : len(answers)] = answers, True
    return Prompts(tokens_PL, valid_PL), tokens_P1T, start_P1T, length_P, last_PG, answers_PGX, known_PGX


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, and are not the last of one."""
    most = min(len(ids) for ids in rows) - 1
    return next((n for n in range(most) if len({ids[n] for ids in rows}) > 1), most)


def _length(row: Row) -> int:
    return len(row.prefix) + max(len(rest) for rest in row.rests)
