"""Which answers a report shows: groups side by side, the best and the worst, and what has changed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from grpo_jax.report.reading import Answer, Found, advantage_of, length_of, parts_of, question_of, total_of
from grpo_jax.report.text import clean, shortened
from grpo_jax.report.tokens import Token, tokens_of

GROUPS = 4  # of a step
IN_GROUP = 16  # answers of a group
EXTREME = 3  # best and worst answers
CHANGED = 6  # questions that changed most
HELD_OUT = 64  # questions, first against last
CHARACTERS = 1_500  # of a text


@dataclass(frozen=True)
class Card:
    """An answer as it is shown. Numbers are texts; `level` is its reward's place from 0 (worst) to 1 (best).

    `tokens` are its first ones where they were written, and `text` is what comes after them.
    """

    label: str
    text: str
    total: str
    level: float
    parts: Sequence[tuple[str, str]]
    advantage: str
    length: str
    cut: bool
    tokens: Sequence[Token] = ()

    def without_tokens(self) -> "Card":
        """The same answer as a text alone."""
        return replace(
            self, text=shortened("".join(token.text for token in self.tokens) + self.text, CHARACTERS), tokens=()
        )


@dataclass(frozen=True)
class Question:
    """A prompt, the answer that was expected, and answers to it."""

    prompt: Sequence[tuple[str, str]]  # who says what
    expected: str
    cards: Sequence[Card]
    note: str = ""
    more: int = 0  # answers that are not shown

    @property
    def is_coloured(self) -> bool:
        """Whether tokens of its answers are coloured."""
        return any(card.tokens for card in self.cards)


@dataclass(frozen=True)
class Chapter:
    """Questions that are shown together, under a title."""

    title: str
    says: str
    questions: Sequence[Question]
    is_open: bool = False
    is_of_step: bool = False


@dataclass(frozen=True)
class _Scale:
    weights: Mapping[str, float]
    low: float
    high: float

    def card(self, row: Answer, label: str) -> Card:
        """An answer as it is shown."""
        total, advantage = total_of(row, self.weights), advantage_of(row)
        parts = [(clean(name), _number(value)) for name, value in parts_of(row).items()]
        unit = "tokens" if "length" in row else "characters"
        talk = transcript(row)
        tokens = [] if talk else tokens_of(row)
        rest = talk or row["completion"][sum(len(token.text) for token in tokens) :]
        return Card(
            label,
            shortened(rest, CHARACTERS),
            "not known" if math.isnan(total) and _has_score(row) else _number(total),
            0.5 if self.high <= self.low or math.isnan(total) else (total - self.low) / (self.high - self.low),
            parts if len(parts) > 1 else [],
            "" if math.isnan(advantage) else f"{advantage:+.3f}",
            f"{length_of(row):.0f} {unit}{_ending(row)}",
            row.get("truncated") is True,
            tokens,
        )


def transcript(row: Answer) -> str:
    """Who said what in a response of several turns; empty for one of a single reply."""
    talk = row.get("conversation")
    if not isinstance(talk, list) or len(talk) < 2 or not all(isinstance(turn, dict) for turn in talk):
        return ""
    return "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in talk)


def _ending(row: Answer) -> str:
    """Why a conversation ended."""
    reason = row.get("stop_reason")
    return f", ended by {reason}" if isinstance(reason, str) else ""


def chapters(found: Found) -> list[Chapter]:
    """All answers that a report shows."""
    weights, each = found.weights, [*found.answers.values(), *found.held_out.values()]
    totals = [t for groups in each for g in groups for row in g if math.isfinite(t := total_of(row, weights))]
    scale = _Scale(weights, min(totals, default=0.0), max(totals, default=0.0))
    made = [*_held_out(found, scale), *_steps(found, scale), _extremes(found, scale), _changed(found, scale)]
    return [chapter for chapter in made if chapter is not None and chapter.questions]


def _steps(found: Found, scale: _Scale) -> Iterator[Chapter]:
    """The groups of the steps that were read, the last step first; those that differ most come first."""
    for index, (step, groups) in enumerate(sorted(found.answers.items(), reverse=True)):
        ordered = sorted(groups, key=lambda group: -_spread(group, scale.weights))
        yield Chapter(
            f"Step {step}: groups side by side",
            f"{min(GROUPS, len(groups))} of {len(groups)} groups, those first whose rewards differ most. An advantage"
            " above 0 makes an answer more probable, one below 0 less.",
            [_question(group, scale) for group in ordered[:GROUPS]],
            is_open=index == 0,
            is_of_step=True,
        )


def _question(group: Sequence[Answer], scale: _Scale) -> Question:
    ordered = sorted(group, key=lambda row: -_known(total_of(row, scale.weights)))
    shown = [scale.card(row, "") for row in ordered[:IN_GROUP]]
    return Question(_prompt(group[0]), _expected(group[0]), shown, more=len(group) - len(shown))


def _extremes(found: Found, scale: _Scale) -> Chapter | None:
    rows = [(step, row) for step, each in found.answers.items() for group in each for row in group]
    scored = [pair for pair in rows if math.isfinite(total_of(pair[1], scale.weights))]
    scored.sort(key=lambda pair: total_of(pair[1], scale.weights))
    if not scored:
        return None
    ends = {"best": scored[-EXTREME:][::-1], "worst": scored[:EXTREME]}
    questions = [
        Question(_prompt(row), _expected(row), [scale.card(row, f"{kind}, step {step}")])
        for kind, pairs in ends.items()
        for step, row in pairs
    ]
    return Chapter("The best and the worst answers", "Of the steps whose answers were read.", questions)


def _changed(found: Found, scale: _Scale) -> Chapter | None:
    """Training questions of several of the steps that were read: their first answer against the last."""
    groups: dict[str, list[tuple[int, Sequence[Answer]]]] = {}
    for step, each in sorted(found.answers.items()):
        for group in each:
            groups.setdefault(question_of(group[0]), []).append((step, group))
    pairs = [(asked[0], asked[-1]) for asked in groups.values() if len(asked) > 1]
    changes = [(pair, _change(pair[0][1], pair[1][1], scale.weights)) for pair in pairs]
    pairs = [pair for pair, _ in sorted((each for each in changes if math.isfinite(each[1])), key=lambda e: -abs(e[1]))]
    questions = [_pair(first, last, scale) for first, last in pairs[:CHANGED]]
    return Chapter("What changed most", "Training prompts that were asked more than once.", questions)


def _held_out(found: Found, scale: _Scale) -> Iterator[Chapter]:
    """Held-out prompts: the first evaluation against the last, those first that changed most."""
    steps = sorted(found.held_out)
    if not steps:
        return
    first, last = ({question_of(group[0]): group for group in found.held_out[step]} for step in (steps[0], steps[-1]))
    both = [(key, _change(first[key], last[key], scale.weights)) for key in last if key in first]
    both.sort(key=lambda pair: -abs(pair[1]) if math.isfinite(pair[1]) else 0.0)
    better, worse, same = (sum(np.sign(change) == sign for _, change in both) for sign in (1, -1, 0))
    says = f"{better} questions are answered better than at step {steps[0]}, {worse} worse, {same} as before."
    says += f" {unknown} have no score." if (unknown := len(both) - better - worse - same) else ""
    shown = [_pair((steps[0], first[key]), (steps[-1], last[key]), scale) for key, _ in both[:HELD_OUT]]
    yield Chapter(f"Held-out answers: step {steps[0]} against step {steps[-1]}", says, shown)


def _pair(first: tuple[int, Sequence[Answer]], last: tuple[int, Sequence[Answer]], scale: _Scale) -> Question:
    means = [_mean(group, scale.weights) for _, group in (first, last)]
    cards = [scale.card(_typical(group, scale.weights), f"step {step}") for step, group in (first, last)]
    row = last[1][0]
    return Question(_prompt(row), _expected(row), cards, note=f"mean reward {_number(means[0])} → {_number(means[1])}")


def _typical(group: Sequence[Answer], weights: Mapping[str, float]) -> Answer:
    """The answer whose reward is nearest to the mean of its group."""
    mean = _mean(group, weights)
    known = [row for row in group if math.isfinite(total_of(row, weights))]
    return min(known, key=lambda row: abs(total_of(row, weights) - mean)) if known else group[0]


def _mean(group: Sequence[Answer], weights: Mapping[str, float]) -> float:
    known = [total for row in group if math.isfinite(total := total_of(row, weights))]
    return fmean(known) if known else math.nan


def _change(first: Sequence[Answer], last: Sequence[Answer], weights: Mapping[str, float]) -> float:
    """How much more a question earns in the mean than it did; NaN where one of both is not known."""
    return _mean(last, weights) - _mean(first, weights)


def _spread(group: Sequence[Answer], weights: Mapping[str, float]) -> float:
    known = [total for row in group if math.isfinite(total := total_of(row, weights))]
    return max(known) - min(known) if known else -1.0


def _prompt(row: Answer) -> list[tuple[str, str]]:
    """Who says what in a prompt: one turn of a plain text, or those of a conversation."""
    prompt: Any = row["prompt"]
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        turns = [(str(turn.get("role", "")), str(turn.get("content", ""))) for turn in prompt]
        return [(clean(who), shortened(text, CHARACTERS)) for who, text in turns]
    return [("prompt", shortened(prompt if isinstance(prompt, str) else repr(prompt), CHARACTERS))]


def _expected(row: Answer) -> str:
    answer = row.get("answer")
    return "" if answer in (None, "") else shortened(str(answer), CHARACTERS)


def _has_score(row: Answer) -> bool:
    return any(math.isfinite(value) for value in parts_of(row).values()) and "reward" not in row


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no score"
