"""Run directories as training writes them, made up: a healthy run, and runs that fail in ten ways."""

import json
import random
from collections.abc import Callable
from pathlib import Path

CONFIG = """run:  # grpo_jax.training.record:Run
  name: NAME  # made.yaml:1
task:  # grpo_jax.tasks:arithmetic
  use: arithmetic  # made.yaml:2
  held_out: 64  # made.yaml:3
rewards:
  - use: last_number  # made.yaml:4
    weight: 1.0  # default
rollout:  # grpo_jax.rollout:Sampler
  responses: 8  # default
  max_tokens: 100  # made.yaml:5
objective:  # grpo_jax.objectives:OBJECTIVE
  use: OBJECTIVE  # made.yaml:6
optimizer:  # grpo_jax.optimizers:adamw
  learning_rate: 1.0e-06  # default
train:  # grpo_jax.training.session:Settings
  steps: STEPS  # made.yaml:7
  prompts: 8  # made.yaml:8
  seed: SEED  # made.yaml:9
  evaluate_prompts: 64  # default
"""
RATIO = "sampling/importance_sampling_ratio"
Number = Callable[[float], float]  # of the part of the run that has passed, from 0 to 1


class Made:
    """A run of so many steps. `curves` replace those of a healthy one: a number by the part that has passed."""

    def __init__(self, steps: int = 40, objective: str = "dapo", rate: float = 1e-6, seed: int = 0, **curves: Number):
        self.steps, self.objective, self.rate, self.seed = steps, objective, rate, seed
        self.random = random.Random(seed)
        self.curves = {
            "right": lambda part: 0.15 + 0.7 * part,  # the chance that an answer is right
            "length": lambda part: 40.0,
            "entropy": lambda part: 1.4 - 0.8 * part,
            "cut": lambda part: 0.1 * (1 - part),
            "size": lambda part: 0.999,
            "held_out": lambda part: 0.2 + 0.65 * part,
            "norm": lambda part: 1.5,
        } | curves
        self.reward: Callable[[bool, float], float] = lambda right, length: float(right)
        self.gold = True  # whether a right answer has the expected one in it

    def write(self, path: Path) -> Path:
        """Writes the directory, and returns it."""
        (path / "completions").mkdir(parents=True)
        text = CONFIG.replace("NAME", path.name).replace("OBJECTIVE", self.objective)
        text = text.replace("STEPS", str(self.steps)).replace("SEED", str(self.seed))
        (path / "config.yaml").write_text(text.replace("1.0e-06", str(self.rate)))
        (path / "run.json").write_text(json.dumps({"name": path.name}))
        rows = [{"step": 0, "eval/reward": self.curves["held_out"](0.0)}]
        for step in range(1, self.steps + 1):
            groups = [self._group(step) for _ in range(8)]
            lines = [json.dumps(answer) + "\n" for group in groups for answer in group]
            (path / "completions" / f"step_{step:06d}.jsonl").write_text("".join(lines))
            rows.append(self._row(step, groups))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def _at(self, name: str, step: int) -> float:
        return self.curves[name](step / self.steps)

    def _group(self, step: int) -> list[dict[str, object]]:
        """Eight answers to a question of its own difficulty."""
        number, ease = self.random.randrange(10, 99), self.random.uniform(-0.25, 0.25)
        chance = self._at("right", step)
        chance += ease if 0.05 < chance < 0.95 else 0.0
        return [self._answer(step, number, self.random.random() < chance) for _ in range(8)]

    def _answer(self, step: int, number: int, right: bool) -> dict[str, object]:
        length = max(1, round(self._at("length", step) * self.random.uniform(0.7, 1.3)))
        said = number + 1 if right and self.gold else number
        return {
            "prompt": f"What is {number} + 1?",
            "answer": str(number + 1),
            "completion": f"It is {said}.",
            "rewards/last_number": self.reward(right, length),
            "advantage": 0.5,
            "length": length,
            "truncated": self.random.random() < self._at("cut", step),
        }

    def _row(self, step: int, groups: list[list[dict[str, object]]]) -> dict[str, object]:
        each = [[answer["rewards/last_number"] for answer in group] for group in groups]
        rewards = [reward for group in each for reward in group]
        lengths = [answer["length"] for group in groups for answer in group]
        equal = sum(max(group) - min(group) < 1e-9 for group in each) / len(each)
        mean = sum(rewards) / len(rewards)
        spread = (sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)) ** 0.5
        noise = self.random.uniform(0.95, 1.05)
        row = {
            "step": step,
            "completions/clipped_ratio": self._at("cut", step),
            "completions/max_length": max(lengths),
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/min_length": min(lengths),
            "entropy": self._at("entropy", step) * noise,
            "reward": mean,
            "reward_std": spread,
            "frac_reward_zero_std": equal,
            "rewards/last_number/mean": mean,
            "rewards/last_number/std": spread,
            "clip_ratio/region_mean": 0.01,
            "grad_norm": 0.0 if equal == 1 else self._at("norm", step) * noise,
            "padding_frac": 0.1,
            "sampling/effective_sample_size": self._at("size", step),
            f"{RATIO}/p01": 0.97,
            f"{RATIO}/mean": 1.0,
            f"{RATIO}/p99": 1.03,
            "sampling/k3": 1e-5 if self._at("size", step) > 0.9 else 0.2,
            "learning_rate": self.rate,
            "time/sampling": 4.0,
            "time/scoring": 0.1,
            "time/learning": 6.0,
            "step_time": 10.1,
            "time/compile": 0.0,
        }
        row |= {"kl": self._at("kl", step)} if "kl" in self.curves else {}
        return row | ({"eval/reward": self._at("held_out", step)} if step % 10 == 0 else {})


def healthy(**given: object) -> Made:
    """A run that learns."""
    return Made(**given)


def constant() -> Made:
    """Every answer earns 0.5."""
    made = Made(right=lambda part: 0.3, held_out=lambda part: 0.5)
    made.reward = lambda right, length: 0.5
    return made


def cut_off() -> Made:
    """All answers are cut off, under an objective that gives them nothing."""
    return Made(objective="verifiable", cut=lambda part: 1.0, right=lambda part: 0.2, length=lambda part: 100.0)


def rate_too_high() -> Made:
    """The reward rises, then the policy is destroyed."""
    return Made(
        rate=1e-3,
        right=lambda part: 0.2 + part if part < 0.4 else 0.05,
        entropy=lambda part: 1.4 if part < 0.4 else 6.0,
        held_out=lambda part: 0.2 if part < 0.5 else 0.05,
    )


def rate_too_low() -> Made:
    """Groups differ, and nothing moves."""
    return Made(
        rate=1e-10, right=lambda part: 0.4, entropy=lambda part: 1.4, held_out=lambda part: 0.4, cut=lambda part: 0.1
    )


def hacked_by_length() -> Made:
    """The reward pays for length, and answers grow."""
    made = Made(right=lambda part: 0.3, length=lambda part: 20 + 60 * part, held_out=lambda part: 0.3 + 0.1 * part)
    made.reward = lambda right, length: length / 100
    return made


def all_right() -> Made:
    """All prompts are solved from the start."""
    return Made(right=lambda part: 1.0, held_out=lambda part: 1.0)


def all_wrong() -> Made:
    """No prompt is ever solved."""
    return Made(right=lambda part: 0.0, held_out=lambda part: 0.0)


def no_entropy() -> Made:
    """The entropy is gone, and the reward stays."""
    return Made(
        right=lambda part: 0.4, entropy=lambda part: max(1.4 - 3 * part, 0.004), held_out=lambda part: 0.4, seed=2
    )


def mismatched() -> Made:
    """The sampler is not the policy that is trained."""
    return Made(size=lambda part: 0.4)


def held_out_falls() -> Made:
    """The training reward rises, the held-out reward falls."""
    return Made(steps=60, held_out=lambda part: 0.6 if part < 0.2 else 0.6 - 0.5 * part)


# The title of the diagnosis that each has to get, and it alone.
FAILURES: dict[str, tuple[Callable[[], Made], str]] = {
    "constant reward": (constant, "The reward is constant"),
    "cut-off answers": (cut_off, "Answers are cut off"),
    "rate too high": (rate_too_high, "The learning rate is too high"),
    "rate too low": (rate_too_low, "The learning rate is too low"),
    "reward hacked by length": (hacked_by_length, "The reward is hacked by length"),
    "all groups right": (all_right, "All groups are right"),
    "all wrong": (all_wrong, "All groups are wrong"),
    "entropy gone": (no_entropy, "The entropy is gone"),
    "sampler mismatch": (mismatched, "Sampler and trainer disagree"),
    "held-out falling": (held_out_falls, "The held-out reward falls"),
}
