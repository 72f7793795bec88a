"""Where the metrics of each step go, beside metrics.jsonl: `train.trackers` of a config names them.

`tensorboard` is the default; `wandb` (Weights & Biases) and `trackio` are extras of this package. Any other tracker is
a function of (step, metrics), such as `my_file:send`, or an object with a method `open` (tracker.py).
"""

from grpo_jax.training.trackers.events import TensorBoard as tensorboard
from grpo_jax.training.trackers.libraries import Trackio as trackio
from grpo_jax.training.trackers.libraries import WeightsAndBiases as wandb

__all__ = ["tensorboard", "trackio", "wandb"]
