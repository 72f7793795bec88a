"""A language model on the devices that train, as a judge that generates nothing.

The judge is asked for a reply such as `places: yes`, with the name of a criterion and one of its answers. All possible
replies are known, so one forward pass is enough: the probabilities, among these, of the first tokens in which the
answers differ, where the name has been written. What the answers of a group have in common, the question and the
criteria, is their prompt and read once; each answer is read once, and the beginnings of all its replies go on from it.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from grpo_jax.judges.asking import about
from grpo_jax.models import load
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.rewards.rubrics import Asked, Judge, Sheet
from grpo_jax.structs import Params, Policy, Prompts


def model(
    name: str,  # a directory, org/name, a run, or smollm2-135m-instruct, as for the model that is trained
    activations: Literal["auto", "float32", "bfloat16"] = "auto",
    template: dict[str, Any] | None = None,  # of the chat template, e.g. {enable_thinking: false}
    max_tokens: int = 4096,  # of a question with its criteria and answer; where there are more, there is no verdict
    at_once: int = 16,  # answers that each device judges at once, each by all criteria
    mesh: Mesh | None = None,
) -> Judge:
    """A model in this process, loaded and divided over the devices as a teacher is."""
    loaded = load(name, activations, template=template)
    mesh = Layout().mesh(jax.local_devices()) if mesh is None else own_mesh(mesh, jax.process_index())
    return ModelJudge(loaded.policy, loaded.params(mesh), loaded.tokenizer, mesh, max_tokens, at_once)


class Row(NamedTuple):
    """The tokens of a sheet: its text, the beginning of each reply, and the next token of each answer in a reply."""

    text: list[int]
    begins: list[list[int]]
    answers: list[list[int]]

    @property
    def length(self) -> int:
        """The tokens of the longest reply with all before it."""
        return len(self.text) + max(map(len, self.begins))


class Group(NamedTuple):
    """Rows whose texts have the same first `shared` tokens, with the indices of their sheets."""

    shared: int
    rows: list[Row]
    indices: list[int]


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
        if row.length > self.limit:
            raise ValueError(
                f"A question to the judge has {row.length} tokens before there is any answer in it, and the limit is"
                f" {self.limit}. Raise judge.max_tokens, or use a judge with more positions, or shorter prompts."
            )

    def judge(self, sheets: Sequence[Sheet]) -> list[list[float | None]]:
        """The expected value of each answer: with no and yes, the probability of yes."""
        values: list[list[float | None]] = [[None] * len(sheet.criteria) for sheet in sheets]
        groups = self._groups(sheets)
        unread = len(sheets) - sum(len(group.rows) for group in groups)
        if unread:
            said = "%d of %d answers are longer than the judge reads (judge.max_tokens), and have no verdict"
            logging.getLogger("grpo_jax").warning(said, unread, len(sheets))
        pieces = list(self._probabilities(groups))  # all are under way before one is read
        found = [group_GRX for piece in pieces for group_GRX in np.asarray(piece, np.float64)]
        for group, group_GRX in zip(groups, found, strict=False):
            for index, row_RX in zip(group.indices, group_GRX, strict=False):
                for r, asked in enumerate(sheets[index].criteria):
                    X = len(asked.answers)
                    values[index][r] = float(np.dot(row_RX[r, :X], np.arange(X)) / (X - 1))
        return values

    def read(self, sheet: Sheet) -> Row:
        """The tokens of a sheet."""
        begun = [self._beginnings(asked) for asked in sheet.criteria]
        return Row(self._text(sheet), [begin for begin, _ in begun], [answers for _, answers in begun])

    def _text(self, sheet: Sheet) -> list[int]:
        if self.tokenizer.has_chat_template:
            return self.tokenizer.encode([{"role": "user", "content": about(sheet)}])
        return self.tokenizer.encode(f"{about(sheet)}\n\nReply:\n")

    def _beginnings(self, asked: Asked) -> tuple[list[int], list[int]]:
        """The tokens that all replies begin with, and the next one of each, which tells them apart."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        replies = [f"{asked.name}: {answer}" for answer in asked.answers]
        ids = [self.tokenizer.backend(reply, **options)["input_ids"] for reply in replies]
        shared = _common(ids)
        return ids[0][:shared], [each[shared] for each in ids]

    def _groups(self, sheets: Sequence[Sheet]) -> list[Group]:
        """Groups of at most `at_once` answers to the same questions, without those that are too long."""
        by_question: dict[Sheet, Group] = {}
        for index, sheet in enumerate(sheets):
            question = replace(sheet, response="")
            group = by_question.setdefault(question, Group(0, [], []))
            row = self.read(sheet)
            if row.length <= self.limit:
                group.rows.append(row)
                group.indices.append(index)
        found = []
        for question, (_, rows, indices) in by_question.items():
            for start in range(0, len(rows), self.at_once):
                some = rows[start : start + self.at_once]
                shared = _common([self._text(question), *(row.text for row in some)])
                found.append(Group(shared, some, indices[start : start + self.at_once]))
        return found

    def _probabilities(self, groups: Sequence[Group]) -> Iterator[Array]:
        """The probabilities of all replies, in pieces of about `at_once` answers for each device."""
        if not groups:
            return
        shards, sizes = prompt_shards(self.mesh), _sizes(groups)
        each = min(max(self.at_once // sizes.G, 1), 1 << (-(-len(groups) // shards) - 1).bit_length())
        for start in range(0, len(groups), each * shards):
            some = groups[start : start + each * shards]
            padded = [*some, *[some[-1]] * (each * shards - len(some))]
            arrays = place_prompts(_arrays(padded, sizes), self.mesh)
            yield _answer_probabilities(self.policy, self.params, *arrays)


@program(static_argnames=("policy",))
def _answer_probabilities(
    policy: Policy,
    params: Params,
    prompts: Prompts,
    tokens_PGT: Int[Array, "P G T"],
    start_PGT: Int[Array, "P G T"],
    length_PG: Int[Array, "P G"],
    trunk_PG: Int[Array, "P G"],
    last_PGR: Int[Array, "P G R"],
    answers_PGRX: Int[Array, "P G R X"],
    known_PGRX: Bool[Array, "P G R X"],
) -> Float[Array, "P G R X"]:
    """The probability of each answer among those that are known, as the next token after each beginning of a reply."""
    valid_PGT = jnp.arange(tokens_PGT.shape[2])[None, None] < length_PG[..., None]
    _, hidden_PGTD = policy.respond(params, prompts, tokens_PGT, valid_PGT, start_PGT, trunk_PG=trunk_PG)
    logits_PGRV = policy.unembed(params, jnp.take_along_axis(hidden_PGTD, last_PGR[..., None], axis=2))
    chosen_PGRX = jnp.take_along_axis(logits_PGRV, answers_PGRX, axis=3)
    return jax.nn.softmax(jnp.where(known_PGRX, chosen_PGRX, EXCLUDED), axis=3)


class _Sizes(NamedTuple):
    """The sizes of the axes: prompts, answers in a group, tokens of a row, replies to each, and answers in a reply."""

    L: int
    G: int
    T: int
    R: int
    X: int


def _sizes(groups: Sequence[Group]) -> _Sizes:
    rows = [row for group in groups for row in group.rows]
    return _Sizes(
        L=_length(max(group.shared for group in groups)),
        G=max(len(group.rows) for group in groups),
        T=_length(
            max(len(row.text) - group.shared + sum(map(len, row.begins)) for group in groups for row in group.rows)
        ),
        R=max(len(row.begins) for row in rows),
        X=max(len(ids) for row in rows for ids in row.answers),
    )


def _arrays(groups: Sequence[Group], sizes: _Sizes) -> tuple[Any, ...]:
    """The groups as arrays: what is shared is padded on the left; in each row the answer, then the replies."""
    P, (L, G, T, R, X) = len(groups), sizes
    tokens_PL, valid_PL = np.zeros((P, L), np.int32), np.zeros((P, L), bool)
    tokens_PGT, start_PGT = np.zeros((2, P, G, T), np.int32)
    length_PG, trunk_PG = np.zeros((2, P, G), np.int32)
    last_PGR = np.zeros((P, G, R), np.int32)
    answers_PGRX, known_PGRX = np.zeros((P, G, R, X), np.int32), np.zeros((P, G, R, X), bool)
    for p, group in enumerate(groups):
        tokens_PL[p, L - group.shared :] = group.rows[0].text[: group.shared]
        valid_PL[p, L - group.shared :] = True
        for g, row in enumerate(group.rows):
            end = trunk_PG[p, g] = len(row.text) - group.shared
            tokens_PGT[p, g, :end] = row.text[group.shared :]
            for r, (begin, answers) in enumerate(zip(row.begins, row.answers, strict=True)):
                start, end = end, end + len(begin)
                tokens_PGT[p, g, start:end], start_PGT[p, g, start:end] = begin, start
                last_PGR[p, g, r] = end - 1
                answers_PGRX[p, g, r, : len(answers)], known_PGRX[p, g, r, : len(answers)] = answers, True
            length_PG[p, g] = end
    prompts = Prompts(tokens_PL, valid_PL)
    return prompts, tokens_PGT, start_PGT, length_PG, trunk_PG, last_PGR, answers_PGRX, known_PGRX


def _length(tokens: int) -> int:
    """The length that shorter ones are padded to: eight for each doubling, as padding costs as much as tokens."""
    step = max(8, (1 << (tokens - 1).bit_length()) // 16)
    return -(-tokens // step) * step


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, and are not the last of one."""
    most = min(len(ids) for ids in rows) - 1
    return next((n for n in range(most) if len({ids[n] for ids in rows}) > 1), most)
