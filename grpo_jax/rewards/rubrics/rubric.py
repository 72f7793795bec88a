"""A rubric as a reward: each criterion is a part of the reward, logged and compared within its group by itself."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from grpo_jax.rewards.event_loop import gathered
from grpo_jax.rewards.example import Example
from grpo_jax.rewards.rubrics.columns import column, filled
from grpo_jax.rewards.rubrics.criterion import Asked, AsyncJudge, Criterion, Judge, Sheet
from grpo_jax.rewards.rubrics.reading import Criteria, read_column, read_criteria
from grpo_jax.rewards.rubrics.rules import Test

Values = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Rubric:
    """Criteria from a file, or from a column of the data, or both.

    Criteria with a rule are judged by it. The others are asked of the judge: a model in this process, or one behind an
    endpoint. A criterion's value is a number from 0 to 1, or None where the judge gave no verdict.

    Those of a column differ between examples, so they become one part together, with the name of the column: the sum of
    value times weight, faults subtracted, as a share of what a perfect answer has, between 0 and 1, times its gates.
    """

    path: str | None = None  # of a TOML, YAML or JSON file with criteria
    column: str | None = None  # of the data, with the criteria of each example
    judge: Judge | None = None  # of criteria without a rule; in a config it is the section judge

    def __post_init__(self) -> None:
        if self.path is None and self.column is None:
            raise ValueError("A Rubric needs the path of a file with criteria, or a column of the data that has them.")
        _check_judged(self.read, self.judge)
        if self.column is not None and self.column in [item.name for item in self.read.items]:
            raise ValueError(f"{self.path}: a criterion has the name of the column {self.column}; give it another.")

    @cached_property
    def read(self) -> Criteria:
        """The criteria of the file; none without a file."""
        return Criteria(()) if self.path is None else read_criteria(Path(self.path).expanduser())

    @property
    def content(self) -> str:
        """The criteria of the file as text, wherever the file stands: what decides their values."""
        return repr((self.read.instructions, [replace(item, place="") for item in self.read.items]))

    @property
    def criteria(self) -> tuple[str, ...]:
        """The names of the parts."""
        return (*(item.name for item in self.read.items), *(() if self.column is None else (self.column,)))

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each part in the sum: negative for faults. Gates have none."""
        return {item.name: item.signed_weight for item in self.read.items if not item.gate}

    @property
    def gates(self) -> frozenset[str]:
        """The parts that multiply the sum of the others."""
        return frozenset(item.name for item in self.read.items if item.gate)

    def check(self, example: Example) -> None:
        """Refuses an example to which no response could be judged."""
        questions = self._questions(example)
        if self.judge is not None and questions.asked:
            self.judge.check(questions.sheet(""))

    def __call__(self, examples: Sequence[Example], responses: Sequence[Sequence[str]]) -> list[list[Values]]:
        """The value of each criterion, for each response to each example."""
        questions = [self._questions(example) for example in examples]
        pairs = [(each, response) for each, group in zip(questions, responses, strict=True) for response in group]
        sheets = [each.sheet(response) for each, response in pairs]
        asked = _to_ask(sheets)
        verdicts = _said(sheets, asked, self.judge.judge(asked) if self.judge is not None and asked else [])
        values = iter([each.values(response, said) for (each, response), said in zip(pairs, verdicts, strict=True)])
        return [[next(values) for _ in group] for group in responses]

    @property
    def judge_group(self) -> Callable[[Example, Sequence[str]], Awaitable[list[Values]]] | None:
        """What judges one group, if the judge is async: a group is judged while others are decoded."""
        judge = self.judge
        if not isinstance(judge, AsyncJudge):
            return None

        async def judge_group(example: Example, responses: Sequence[str]) -> list[Values]:
            questions = self._questions(example)
            sheets = [questions.sheet(response) for response in responses]
            asked = _to_ask(sheets)
            verdicts = _said(sheets, asked, await gathered(map(judge.verdict, asked)))
            return [questions.values(response, said) for response, said in zip(responses, verdicts, strict=True)]

        return judge_group

    def _questions(self, example: Example) -> "_Questions":
        own = Criteria(())
        if self.column is not None:
            place = example.source if example.source else example.label
            own = read_column(column(self.column, example.columns), f"{place}: {self.column}")
            _check_judged(own, self.judge)
        return _Questions(example, self.read, own, self.column)


class _Questions:
    """The criteria of one example, with its columns put into them."""

    def __init__(self, example: Example, shared: Criteria, own: Criteria, column: str | None) -> None:
        self.shared, self.own, self.column = shared.items, own.items, column
        items = (*shared.items, *own.items)
        self.tests: list[Test | None] = [_bound(item, example) for item in items]
        self.asked = tuple(Asked(item.name, _text(item, example), item.answers) for item in items if item.rule is None)
        self.instructions = "\n".join(each.instructions for each in (shared, own) if each.instructions)
        self.prompt = _conversation(example)

    def sheet(self, response: str) -> Sheet:
        """What a judge is asked about a response."""
        return Sheet(self.instructions, self.prompt, response, self.asked)

    def values(self, response: str, verdicts: Sequence[float | None]) -> Values:
        """The value of each part, from the rules and what a judge said."""
        said = iter(verdicts)
        values = [next(said) if test is None else test(response) for test in self.tests]
        named: Values = {item.name: value for item, value in zip(self.shared, values, strict=False)}
        if self.column is not None:
            named[self.column] = combined(self.own, values[len(self.shared) :])
        return named


def combined(items: Sequence[Criterion], values: Sequence[float | None]) -> float | None:
    """One number for several criteria: the share of what a perfect answer has, between 0 and 1, times the gates. None
    if one of them has no value.
    """
    total, gate, best = 0.0, 1.0, sum(item.weight for item in items if not item.gate and not item.negative)
    for item, value in zip(items, values, strict=True):
        if value is None:
            return None
        if item.gate:
            gate *= value
        else:
            total += item.signed_weight * value
    if best == 0:  # only faults, which are absent from a perfect answer
        faults = sum(item.weight for item in items if item.negative)
        return gate * (1 + total / faults)
    return gate * min(max(total / best, 0.0), 1.0)


def _to_ask(sheets: Sequence[Sheet]) -> list[Sheet]:
    """What a judge is asked: equal sheets once, and those without a question not at all."""
    return list(dict.fromkeys(sheet for sheet in sheets if sheet.criteria))


def _said(
    sheets: Sequence[Sheet], asked: Sequence[Sheet], verdicts: Sequence[list[float | None]]
) -> list[list[float | None]]:
    """What the judge said of each sheet; nothing of those that it was not asked."""
    known = dict(zip(asked, verdicts, strict=True))
    return [known.get(sheet, []) for sheet in sheets]


def _check_judged(criteria: Criteria, judge: Judge | None) -> None:
    for item in criteria.items:
        if item.rule is None and judge is None:
            raise ValueError(
                f"{item.place}: criterion {item.name} has no rule, and there is no judge that could be asked. Give it a"
                " rule, or a judge: in a config the section judge: {name: a model}, or {use: endpoint, url: ...,"
                " model: ...}."
            )


def _bound(item: Criterion, example: Example) -> Test | None:
    try:
        return None if item.rule is None else item.rule.bound(example.columns)
    except ValueError as error:
        raise ValueError(f"{item.place}: {item.name}: {error}") from error


def _text(item: Criterion, example: Example) -> str:
    try:
        return filled(item.text, example.columns)
    except ValueError as error:
        raise ValueError(f"{item.place}: {item.name}: {error}") from error


def _conversation(example: Example) -> str:
    """The question as a judge reads it: the messages without the system's, each after its role if there are several."""
    if isinstance(example.prompt, str):
        return example.prompt
    messages = [message for message in example.prompt if message["role"] != "system"]
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
