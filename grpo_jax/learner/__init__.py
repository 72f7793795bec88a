"""From a batch to the next state: log-probs, gradients added up over microbatches, optimiser steps."""

from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.learner.update import check_batch, compare, fixed_logprobs, follow, learn

__all__ = ["check_batch", "compare", "fixed_logprobs", "follow", "learn", "token_logprobs"]
