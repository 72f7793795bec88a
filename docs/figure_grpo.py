"""Draws one step of GRPO, from the real answers of a real step: eight answers to one question, what each earned, how it
compares with the others, and how much likelier the step made it.

    python docs/figure_grpo.py configs/quickstart.yaml docs/images/a_step_of_grpo.svg

It takes the first step of the config, or some more of them, draws the last one, and prints it as a table in Markdown.
A minute on two quiet cores. The question is the one whose answers differ most in what they earned.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

import grpo_jax as gj

GOOD, BAD, NONE = "#2a7f62", "#b5482f", "#8a8f98"
WIDEST = 44  # letters of an answer that are drawn


@dataclass(frozen=True)
class Group:
    """The answers to one question, with a number each."""

    question: str
    answers: list[str]
    rewards_G: np.ndarray
    advantages_G: np.ndarray
    before_G: np.ndarray  # log-prob of the whole answer, before the step
    after_G: np.ndarray

    @property
    def factors_G(self) -> np.ndarray:
        """How many times as likely each answer is after the step."""
        return np.exp(self.after_G - self.before_G)


def last_group(config: str, first: int, steps: int, rate: float) -> Group:
    """The group of the last of these steps whose rewards vary most. They ask the questions from the `first` one on."""
    changes = [f"optimizer.learning_rate={rate}", "optimizer.warmup_steps=0"]
    parts: dict[str, Any] = gj.config.build(gj.config.read(config, changes))
    model, task, algorithm, settings = (parts[name] for name in ("model", "task", "algorithm", "settings"))
    state = gj.init(algorithm, model.params(gj.Layout().mesh(jax.devices()[:1])))
    for step in range(steps):
        begin = first + step * settings.prompts
        examples = task.train[begin : begin + settings.prompts]
        prompts = model.tokenizer.encode_all([each.prompt for each in examples], max_tokens=settings.max_prompt_tokens)
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        rollouts = gj.sample(algorithm, state, prompts, examples, key)
        rewards = gj.score(algorithm, rollouts, examples)
        batch = gj.prepare(algorithm, state, rollouts, rewards, key)
        before_PG = answer_logprobs(algorithm.policy, state.params, rollouts)
        state, metrics = gj.update(algorithm, state, batch)
        print(f"step {step + 1} of {steps}: mean reward {float(metrics['reward']):.3f}", flush=True)
    after_PG = answer_logprobs(algorithm.policy, state.params, rollouts)
    total_PG = rewards.parts_PGR @ algorithm.mix.weights_R
    p = int(np.argmax(np.var(total_PG, axis=1)))
    numbers = (total_PG, np.asarray(batch.advantages), before_PG, after_PG)
    question = examples[p].prompt if isinstance(examples[p].prompt, str) else examples[p].prompt[-1]["content"]
    return Group(question, rewards.texts[p], *(a_PG[p] for a_PG in numbers))


def answer_logprobs(policy: gj.Policy, params: Any, rollouts: gj.Rollouts) -> np.ndarray:
    """The log-prob of each whole answer under these weights."""
    score = jax.jit(gj.token_logprobs, static_argnums=0)
    return np.asarray(score(policy, params, replace(rollouts, greedy=None))[0]).sum(axis=2)


def draw(group: Group, picture: Path) -> None:
    """Writes the group as an SVG: a row for each answer, the best first."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    order = np.lexsort((-group.factors_G, -group.rewards_G))
    rows = np.arange(len(order))
    figure, (texts, *panels) = plt.subplots(
        1, 4, figsize=(10, 0.38 * len(order) + 1.3), layout="constrained", sharey=True, width_ratios=[2.6, 1, 1, 1.2]
    )
    texts.axis("off")
    texts.set_title("answer", loc="left")
    for row, index in enumerate(order):
        texts.text(0, row, _short(group.answers[index]), va="center", family="monospace", parse_math=False)
    named = [
        ("1. reward", group.rewards_G),
        ("2. advantage", group.advantages_G),
        ("3. times as likely", group.factors_G),
    ]
    for panel, (title, values_G), base in zip(panels, named, (0.0, 0.0, 1.0), strict=True):
        shown_G = values_G[order]
        colours = [GOOD if value > base else BAD if value < base else NONE for value in shown_G]
        panel.barh(rows, shown_G - base, left=base, color=colours, height=0.6)
        panel.axvline(base, color="0.3", linewidth=0.8)
        panel.set(title=title, yticks=[])
        panel.margins(x=0.35)
        panel.spines["left"].set_visible(False)
        for row, value in enumerate(shown_G):
            panel.annotate(
                f"{value:.2f}",
                (value, row),
                xytext=(4 if value >= base else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if value >= base else "right",
                fontsize=8,
            )
    panels[0].axvline(group.rewards_G.mean(), color="0.5", linewidth=0.8, linestyle=":")
    texts.set_ylim(len(order) - 0.4, -0.6)
    figure.suptitle(group.question, x=0.01, ha="left", parse_math=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def _short(answer: str) -> str:
    text = " ".join(answer.split())
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."


def table(group: Group) -> str:
    """The group in Markdown."""
    rows = ["| answer | reward | advantage | log-prob before | after | times as likely |", "|---|---|---|---|---|---|"]
    numbers = zip(group.rewards_G, group.advantages_G, group.before_G, group.after_G, group.factors_G, strict=True)
    for answer, values in zip(group.answers, numbers, strict=True):
        rows.append(f"| {_short(answer)} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(rows)


def main() -> None:
    """Takes the steps, writes the picture, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--first", type=int, default=32, help="question of the first step; default: %(default)s")
    parser.add_argument("--steps", type=int, default=1, help="of which the last is drawn; default: %(default)s")
    parser.add_argument("--rate", type=float, default=1e-5, help="the learning rate; default: %(default)s")
    arguments = parser.parse_args()
    group = last_group(arguments.config, arguments.first, arguments.steps, arguments.rate)
    draw(group, arguments.picture)
    print(f"\n{group.question}\n\n{table(group)}")


if __name__ == "__main__":
    main()
