"""Compares PPO with GRPO on a task that a random model learns from nothing, with the same budget of sampled tokens:

    python examples/compare_ppo.py docs/images/ppo_and_grpo.svg

Both begin with the same weights, see the same questions in every step, sample the same number of answers and have the
KL term of their paper, towards the weights they began with, with the same coefficient. Prints a table in Markdown, and
writes the curves of all seeds: their mean, and a band from the worst to the best.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib
import numpy as np
import ppo

matplotlib.use("svg")
import matplotlib.pyplot as plt

import grpo_jax as gj
from grpo_jax.objectives.kl import k1, kl_term

LAST = 5  # steps that a final reward is the mean of
KL = 0.04  # the default of objectives.grpo


@dataclass(frozen=True)
class Curves:
    """The mean reward of each step, a row for each seed."""

    rewards_nX: np.ndarray

    @property
    def final_n(self) -> np.ndarray:
        """The mean reward of the last steps, for each seed."""
        return self.rewards_nX[:, -LAST:].mean(axis=1)


def compare(steps: int, seeds: int) -> dict[str, Curves]:
    """The curves of each method, by its name, with the number of epochs that was best of those tried."""
    return {
        "GRPO": trained(None, steps, seeds),
        "PPO, a critic of its own": trained(ppo.PPO(epochs=4, own_critic=True), steps, seeds),
        "PPO, a head on the policy": trained(ppo.PPO(epochs=2), steps, seeds),
    }


def trained(settings: ppo.PPO | None, steps: int, seeds: int) -> Curves:
    """The curves of one method; all seeds share its compiled programs."""
    algorithm, rewards = build(settings), []
    for seed in range(seeds):
        task, row = ppo.letters(seed), []
        params = task.model.params(gj.Layout().mesh(jax.devices()[:1]))
        state = gj.init(algorithm, params) if settings is None else ppo.init(algorithm, settings, params)
        for index in range(steps):
            key = jax.random.fold_in(jax.random.key(seed), index)
            inputs = state, task.prompts, task.examples, key
            state, metrics = gj.step(algorithm, *inputs) if settings is None else ppo.step(algorithm, settings, *inputs)
            row.append(float(metrics["reward"]))
        rewards.append(row)
        print(f"{settings or 'GRPO'}, seed {seed}: {np.mean(row[-LAST:]):.3f}", flush=True)
    return Curves(np.array(rewards))


def build(settings: ppo.PPO | None) -> gj.Algorithm:
    """Everything but the critic; the learning rate is the best of those tried, for each method."""
    pull = kl_term(KL, k1, place="token_reward")
    objective = gj.objectives.grpo(kl=KL) if settings is None else ppo.objective(kl=pull)
    return ppo.algorithm_for(ppo.letters(), objective)


def draw(found: dict[str, Curves], picture: Path) -> None:
    """Writes the curves as an SVG."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, curves), line in zip(found.items(), ("-", "--", "-."), strict=True):
        steps = np.arange(1, curves.rewards_nX.shape[1] + 1)
        (drawn,) = axes.plot(steps, curves.rewards_nX.mean(axis=0), line, label=name)
        low, high = curves.rewards_nX.min(axis=0), curves.rewards_nX.max(axis=0)
        axes.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step, of 6 x 32 answers of at most 4 tokens", ylabel="mean reward", ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def table(found: dict[str, Curves]) -> str:
    """The final rewards in Markdown."""
    rows = ["| | final reward | lowest | highest |", "|---|---|---|---|"]
    for name, curves in found.items():
        final_n = curves.final_n
        numbers = f"{final_n.mean():.3f} | {final_n.min():.3f} | {final_n.max():.3f}"
        rows.append(f"| {name} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    """Trains every method with every seed, writes the picture, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="of each training; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    found = compare(arguments.steps, arguments.seeds)
    draw(found, arguments.picture)
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
