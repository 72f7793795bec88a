"""Answers that should earn little: whatever they earn, a policy can learn to write instead of an answer."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grpo_jax.commands import printing
from grpo_jax.commands.data.golds import token_ids
from grpo_jax.metrics import describe_rewards
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.rewards import Example, Mix, score

GOLD, NOTHING = "the gold answer", "nothing"
OTHERS = 24  # answers beside its own in a shotgun
LONGEST = 4000  # characters of a probe
NOT_WORDS = ("path", "column", "place")  # fields of a reward that hold no criteria
SUSPECT = 0.5  # of what golds earn, from which on a probe is pointed out


def earned(mix: Mix, asked: Sequence[Example], tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """What gold answers and probes to these examples earn on average, of each reward and in all."""
    if not asked:
        return {}
    golds = [example.answer for example in asked]
    probes = {name: [probe(n, asked, mix)[:LONGEST] for n in range(len(asked))] for name, probe in PROBES.items()}
    useless = () if any(golds) else OF_GOLD
    probes = {name: texts for name, texts in probes.items() if name not in useless and (any(texts) or name == NOTHING)}
    rows = {GOLD: golds} if any(golds) else {}
    responses = [list(texts) for texts in zip(*(rows | probes).values(), strict=True)]
    rewards_PGR = score(mix, asked, responses, token_ids(responses, tokenizer), step=0)
    means = [describe_rewards(rewards_PGR[:, [g]], mix) for g in range(rewards_PGR.shape[1])]
    names = {"reward": "reward", **{f"rewards/{name}/mean": name for name in mix.names}}
    return {
        probe: {name: mean[metric] for metric, name in names.items()}
        for probe, mean in zip(rows | probes, means, strict=True)
    }


def table(found: Mapping[str, Mapping[str, float]], mix: Mix, count: int) -> str:
    """What was earned, a line for each probe; those that earn much are pointed out."""
    if not found:
        return "no probes, as --probes is 0"
    best = found[GOLD]["reward"] if GOLD in found else 1.0
    rows = [["", *(f"{name:>6}" for name in ("in all", *mix.names))]]
    for probe, means in found.items():
        cells = [f"{_number(means[name]):>{max(len(name), 6)}}" for name in ("reward", *mix.names)]
        fooled = probe != GOLD and best > 0 and means["reward"] >= SUSPECT * best
        rows.append([f"  {probe}", *cells, *(["<- it can be fooled so"] if fooled else [])])
    heading = f"what answers earn that should earn little, on the first {count} training examples:"
    return f"{heading}\n{printing.table(rows, printing.width())}"


def _number(mean: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.3f}"


def _nothing(index: int, examples: Sequence[Example], mix: Mix) -> str:
    return ""


def _question(index: int, examples: Sequence[Example], mix: Mix) -> str:
    prompt = examples[index].prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _criteria(index: int, examples: Sequence[Example], mix: Mix) -> str:
    """Every text that the criteria and the columns of an example hold, but question and answer, as a list."""
    example = examples[index]
    asked, answer = _question(index, examples, mix), example.answer
    found = [*_texts([reward for reward, _ in mix.parts]), *_texts(dict(example.columns))]
    return ", ".join(dict.fromkeys(text for text in found if text not in asked and (not answer or answer not in text)))


def _denied(index: int, examples: Sequence[Example], mix: Mix) -> str:
    return f"The answer is not {examples[index].answer}."


def _shotgun(index: int, examples: Sequence[Example], mix: Mix) -> str:
    """The example's own answer in the middle of those of others."""
    own = examples[index].answer
    others = [answer for answer in dict.fromkeys(example.answer for example in examples) if answer not in ("", own)]
    chosen = others[:OTHERS]
    if not chosen:
        return ""  # it would be the answer alone
    return ", ".join([*chosen[: len(chosen) // 2], own, *chosen[len(chosen) // 2 :]])


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """The texts in a value: strings, those in lists and mappings, and in the fields of objects."""
    if isinstance(value, str):
        yield value
    elif depth > 8:
        return
    elif isinstance(value, functools.partial):
        yield from _texts([value.func, value.keywords], depth + 1)
    elif isinstance(value, Mapping):
        yield from _texts([item for name, item in value.items() if name not in NOT_WORDS], depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in sorted(value, key=str) if isinstance(value, set | frozenset) else value:
            yield from _texts(item, depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        fields |= {"read": getattr(value, "read", None), "criteria": getattr(value, "criteria", ())}
        yield from _texts(fields, depth + 1)


Probe = Callable[[int, Sequence[Example], Mix], str]
PROBES: dict[str, Probe] = {
    NOTHING: _nothing,
    "the question, repeated": _question,
    "all words of the criteria": _criteria,
    "the answer, denied": _denied,
    "many answers at once": _shotgun,
}
OF_GOLD = ("the answer, denied", "many answers at once")  # probes that need one
