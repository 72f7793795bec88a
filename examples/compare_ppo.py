"""Compares PPO with GRPO on a task that a random model learns from nothing, with the same budget of sampled tokens:

    python examples/compare_ppo.py docs/images/ppo_and_grpo.svg

Both begin with the same weights, see the same questions in every step, sample the same number of answers and have a KL
term towards the weights they began with, with the same coefficient: GRPO in the loss, PPO in the reward of each token.
Prints a table in Markdown. Writes the curves of all seeds to the path, if there is one: their mean, and a band from the
worst to the best. Other settings are options:

    python examples/compare_ppo.py --methods head --rate 6e-3 --epochs 1 --trace 1 --seeds 1
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
METHODS = {  # their names, and their settings, with the number of epochs that was best of those tried
    "grpo": ("GRPO", None),
    "own": ("PPO, a critic of its own", ppo.PPO(epochs=4, own_critic=True)),
    "head": ("PPO, a head on the policy", ppo.PPO(epochs=2)),
}
LINES = dict(zip((name for name, _ in METHODS.values()), ("-", "--", "-."), strict=True))


@dataclass(frozen=True)
class Curves:
    """The mean reward of each step, a row for each seed."""

    rewards_nX: np.ndarray

    @property
    def final_n(self) -> np.ndarray:
        """The mean reward of the last steps, for each seed."""
        return self.rewards_nX[:, -LAST:].mean(axis=1)


def compared(given: argparse.Namespace) -> dict[str, ppo.PPO | None]:
    """The settings of each method, by its name, with those of the options; None is GRPO."""
    changes = {name: getattr(given, name) for name in ("epochs", "trace") if getattr(given, name) is not None}
    chosen = dict(METHODS[method] for method in given.methods)
    return {name: None if settings is None else replace(settings, **changes) for name, settings in chosen.items()}


def trained(algorithm: gj.Algorithm, settings: ppo.PPO | None, steps: int, seeds: int) -> Curves:
    """The curves of one method; all seeds share its compiled programs."""
    rewards = []
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


def build(settings: ppo.PPO | None, rate: float, kl: float) -> gj.Algorithm:
    """Everything but the critic."""
    pull = kl_term(kl, k1, place="token_reward")
    objective = gj.objectives.grpo(kl=kl) if settings is None else ppo.objective(kl=pull)
    return ppo.algorithm_for(ppo.letters(), objective, rate)


def draw(found: dict[str, Curves], picture: Path) -> None:
    """Writes the curves as an SVG."""
    plt.rcParams |= {"svg.hashsalt": "grpo_jax", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, curves in found.items():
        steps = np.arange(1, curves.rewards_nX.shape[1] + 1)
        (drawn,) = axes.plot(steps, curves.rewards_nX.mean(axis=0), LINES[name], label=name)
        low, high = curves.rewards_nX.min(axis=0), curves.rewards_nX.max(axis=0)
        axes.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step, of 6 x 32 answers of at most 4 tokens", ylabel="mean reward", ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def table(found: dict[str, Curves]) -> str:
    """The final rewards in Markdown."""
    rows = ["| | first seed | mean of the seeds | lowest | highest |", "|---|---|---|---|---|"]
    for name, curves in found.items():
        final_n = curves.final_n
        numbers = final_n[0], final_n.mean(), final_n.min(), final_n.max()
        rows.append(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return "\n".join(rows)


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", help="an SVG that is written; default: none")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--steps", type=int, default=100, help="of each training; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="how many; default: %(default)s")
    parser.add_argument("--rate", type=float, default=ppo.RATE, help="learning rate; default: %(default)s")
    parser.add_argument("--kl", type=float, default=KL, help="coefficient, 0: no KL term; default: %(default)s")
    parser.add_argument("--epochs", type=int, help="of PPO; default: 4 with a critic of its own, 2 with a head")
    parser.add_argument("--trace", type=float, help=f"lambda of PPO; default: {ppo.PPO.trace}")
    given = parser.parse_args(words)
    if set(given.methods) == {"grpo"} and (given.epochs, given.trace) != (None, None):
        parser.error("--epochs and --trace are settings of PPO, and GRPO alone is trained: leave them out, or add head")
    return given


def main() -> None:
    """Trains every method with every seed, writes the picture, prints the table."""
    given, found = options(), {}
    for name, settings in compared(given).items():
        found[name] = trained(build(settings, given.rate, given.kl), settings, given.steps, given.seeds)
    if given.picture is not None:
        draw(found, given.picture)
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
