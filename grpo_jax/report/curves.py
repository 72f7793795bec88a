"""Which curves a report has: title, what it shows, the unit of its axis, and the metrics that are drawn."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from grpo_jax.health.groups import agreement, extremes
from grpo_jax.report.reading import Found

POINTS = 500  # of a line; more steps are thinned, and keep their extremes
OTHERS = 40  # metrics without a curve of their own that are drawn


@dataclass(frozen=True)
class Line:
    """A metric by steps. `low` and `high` are bounds around it, where there are some; points are drawn if it is few."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    points: bool = False


@dataclass(frozen=True)
class Curve:
    """One picture: its lines share an axis in `unit`."""

    title: str
    says: str
    unit: str
    lines: Sequence[Line]
    log: bool = False
    stacked: bool = False


@dataclass(frozen=True)
class Plan:
    """A curve before its metrics are looked up. `metrics` are patterns of names, each with the label of its line."""

    title: str
    says: str
    unit: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    log: bool = False
    stacked: bool = False
    alone: bool = True  # whether one line is enough to be drawn


TAUGHT = "reward"  # a metric of runs that learn from rewards, and not from given answers
RATIO = r"sampling/importance_sampling_ratio"
PLANS = (
    Plan("Reward", "The mean total of a step's answers, and of greedy answers to held-out prompts.", "reward",
         {r"reward": "training", r"eval/reward": "held-out"}),
    Plan("Parts of the reward", "The mean of each reward, before its weight.", "reward",
         {r"rewards/(.+)/mean": r"\1"}, alone=False),
    Plan("Held-out rewards", "The mean of each reward on held-out prompts.", "reward",
         {r"eval/rewards/(.+)/mean": r"\1"}, alone=False),
    Plan("pass@k and maj@k", "Held-out prompts that one of k answers solves, or that the majority of k does.",
         "part of prompts", {r"eval/((?:pass|maj)@\d+)": r"\1"}),
    Plan("Spread of rewards within groups", "What a group learns from: 0 where all its answers earn the same.",
         "reward", {r"reward_std": "standard deviation"}),
    Plan("Length", "Tokens of an answer, its end included.", "tokens",
         {r"completions/mean_length": "mean", r"completions/mean_terminated_length": "mean of those that ended",
          r"completions/max_length": "longest", r"completions/min_length": "shortest"}),
    Plan("Cut-off answers", "Answers that reached rollout.max_tokens before their end.", "part of answers",
         {r"completions/clipped_ratio": "cut off"}),
    Plan("Entropy", "How open the choice of a token is; near 0, answers hardly differ.", "nats a token",
         {r"entropy": "entropy"}),
    Plan("KL to the reference", "How far the policy is from the reference policy.", "nats a token", {r"kl": "KL"}),
    Plan("Gradient norm", "Before it is clipped. Single spikes are harmless; growth is not.", "norm",
         {r"grad_norm": "norm"}, log=True),
    Plan("Learning rate", "Of the last optimiser step of each step.", "rate", {r"learning_rate": "rate"}),
    Plan("Loss", "Near 0 by construction, as advantages of a group add up to 0: it says little about learning.", "loss",
         {r"loss": "loss"}),
    Plan("Clip fractions", "Tokens whose ratio left the clip range, so that they teach nothing.", "part of tokens",
         {r"clip_ratio/low_mean": "below", r"clip_ratio/high_mean": "above", r"clip_ratio/region_mean": "all"}),
    Plan("Mismatch of sampler and trainer", "k3 of trainer and sampler: how differently they score the same tokens.",
         "nats a token", {r"sampling/k3": "k3"}, log=True),
    Plan("Ratios of trainer to sampler", "1 where both agree; 98 % of the tokens lie between the lines p01 and p99.",
         "ratio", {RATIO + "/p01": "p01", RATIO + "/mean": "mean", RATIO + "/p99": "p99"}),
    Plan("Effective sample size", "1 where all tokens count the same.", "part of tokens",
         {r"sampling/effective_sample_size": "size"}),
    Plan("Padding", "Positions of the learner's batch that hold no token.", "part of positions",
         {r"padding_frac": "padding"}),
    Plan("Time of a step, by phase", "Compiling is part of the phases.", "seconds",
         {r"time/(sampling|scoring|learning|evaluating|saving)": r"\1"}, stacked=True),
    Plan("Memory", "The most in use so far: of the fullest device, where devices tell, and of the process.", "GB",
         {r"memory/lifetime_peak/(.+)": r"\1"}),
)  # fmt: skip
GIVEN = Plan("Loss", "Cross-entropy of given answers: of those that are learned, and of held-out ones.", "nats a token",
             {r"loss": "training", r"eval/loss": "held-out"})  # fmt: skip
CUT_OFF = Plan("Cut-off answers", "Given answers that are cut off at sft.max_tokens.", "part of answers",
               {r"completions/clipped_ratio": "cut off"})  # fmt: skip
HIDDEN = (r"step", r"eval/.*/(low|high)", r"step_time", r"time/.*", r"sampling/programs")


def curves(found: Found) -> list[Curve]:
    """All curves of a run as they are drawn: of long lines the extremes alone."""
    return [replace(curve, lines=[thin(line) for line in curve.lines]) for curve in whole_curves(found)]


def whole_curves(found: Found) -> list[Curve]:
    """All curves for which the run has numbers, those of the answers and of the speed among them."""
    of_given = TAUGHT not in found.history.names()
    plans = [CUT_OFF if of_given and plan.title == CUT_OFF.title else plan for plan in PLANS]
    drawn = [_curve(found, plan) for plan in plans if not (of_given and plan.title == GIVEN.title)]
    agree = _agreeing(found)
    speed = _speed(found)
    made = [_curve(found, GIVEN) if of_given else None, *drawn[:5], agree, *drawn[5:-2], speed, *drawn[-2:]]
    return [curve for curve in made if curve is not None]


def others(found: Found) -> list[Curve]:
    """Metrics that no other curve shows, such as what a reward logs itself, each with a curve of its own."""
    known = [*HIDDEN, "frac_reward_zero_std", "eval/loss", *(pattern for plan in PLANS for pattern in plan.metrics)]
    names = [name for name in found.history.names() if not any(re.fullmatch(each, name) for each in known)]
    lines = [(name, thin(_line(found, name, name))) for name in names[:OTHERS]]
    return [Curve(name, "", "", [line]) for name, line in lines if np.ptp(line.values) > 0]


def _curve(found: Found, plan: Plan) -> Curve | None:
    names = found.history.names()
    pairs = [
        (name, match.expand(label))
        for pattern, label in plan.metrics.items()
        for name in names
        if (match := re.fullmatch(pattern, name)) is not None
    ]
    lines = [_line(found, name, label) for name, label in pairs]
    if not lines or (len(lines) == 1 and not plan.alone):
        return None
    least, most = min(line.values.min() for line in lines), max(line.values.max() for line in lines)
    log = plan.log and bool(0 < least < most)
    return Curve(plan.title, plan.says, plan.unit, lines, log, plan.stacked)


def _line(found: Found, name: str, label: str) -> Line:
    """A metric of the run; an evaluation has points, and its interval if that was measured."""
    steps, values = found.history.column(name)
    bounds = [dict(zip(*found.history.column(f"{name}/{side}"), strict=True)) for side in ("low", "high")]
    if all(bounds):  # an evaluation whose answers all earned the same has none
        low, high = (
            np.array([bound.get(step, value) for step, value in zip(steps, values, strict=True)]) for bound in bounds
        )
        return Line(label, steps, values, low, high, points=True)
    return Line(label, steps, values, points=name.startswith("eval/"))


def thin(line: Line) -> Line:
    """A line with at most twice `POINTS` points and its ends, and the bounds there."""
    kept, values = thinned(np.arange(len(line.steps)), line.values)
    low, high = (None if bound is None else bound[kept] for bound in (line.low, line.high))
    return replace(line, steps=line.steps[kept], values=values, low=low, high=high)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most twice `POINTS` points: the lowest and the highest of equal parts of the steps, and both ends."""
    if len(steps) <= 2 * POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), POINTS + 1, dtype=int)
    kept = {0, len(steps) - 1}
    for start, end in pairwise(edges.tolist()):
        part = values[start:end]
        kept |= {start + int(part.argmin()), start + int(part.argmax())}
    order = np.array(sorted(kept))
    return steps[order], values[order]


def _agreeing(found: Found) -> Curve | None:
    """The groups that teach nothing; in the steps whose answers were read also which are all right, and all wrong."""
    lines = []
    if "frac_reward_zero_std" in found.history.names():
        lines.append(_line(found, "frac_reward_zero_std", "all groups that agree"))
    low, high = extremes(found.groups)
    agreed = {step: agreement(groups, low, high) for step, groups in found.groups.items()}
    known = {step: each for step, each in agreed.items() if each is not None}
    if known and high > low:
        steps = np.array(list(known))
        for label, values in (
            ("all right", [each.right for each in known.values()]),
            ("all wrong", [each.wrong for each in known.values()]),
        ):
            lines.append(Line(label, steps, np.array(values), points=True))
    says = "Groups whose answers all earn the same teach nothing. Right is the best reward seen, wrong the worst."
    return Curve("Groups that agree", says, "part of groups", lines) if lines else None


def _speed(found: Found) -> Curve | None:
    """Tokens of answers in a second of a step."""
    prompts = found.settings.get("train.prompts", ("", ""))[0]
    lengths, times = (found.history.values.get(name) for name in ("completions/mean_length", "step_time"))
    if lengths is None or times is None or not prompts.isdecimal() or found.setup.responses is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = lengths * int(prompts) * found.setup.responses / times
    known = np.isfinite(speed)
    if not known.any():
        return None
    line = Line("tokens a second", found.history.steps[known], speed[known])
    return Curve("Speed", "Tokens of answers for each second of a step, all phases together.", "tokens/s", [line])


def smooth(values: np.ndarray) -> np.ndarray | None:
    """A mean over about a twentieth of the points, for a line that is too noisy to read; None for a short one."""
    width = len(values) // 20
    if width < 3:
        return None
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="same")[width // 2 : width // 2 + len(values)]
