"""Measures how far weights in 8 bits move log-probs: python docs/measure_int8.py prints a table.

SmolLM2-135M-Instruct answers questions, and the trainer scores these answers with its matrices in 8 bits, rounded as
`model.weights: int8` does it, and by the library qwix, if that is installed (pip install qwix). Activations are in
float32, so only the weights differ.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import grpo_jax as gj
from grpo_jax.learner.logprobs import token_logprobs
from grpo_jax.models.adapted import summed
from grpo_jax.models.lora import adapted_weights, kind_of, quantized, weight_axes
from grpo_jax.structs import Params

TOPICS = ("Osaka", "rivers", "bread", "the moon", "chess", "rice", "volcanoes", "the violin")
QUESTIONS = [f"What is {n} plus {3 * n + 1}?" for n in range(8)] + [f"Tell me about {topic}." for topic in TOPICS]


def matrices(change: Callable[[str, Array], Array], params: Params) -> Params:
    """The parameters with each matrix of a layer changed."""
    return {
        name: change(name, value) if kind_of(name) else matrices(change, value) if isinstance(value, dict) else value
        for name, value in params.items()
    }


def in_8_bits(name: str, weight: Array) -> Array:
    """A matrix rounded as `model.weights: int8` does it."""
    return summed(tuple(quantized({name: weight})[name].values()), None, None, 1.0, weight.dtype)


def by_qwix(name: str, weight: Array) -> Array:
    """A matrix rounded by qwix, with a scale for each layer and output, too."""
    import qwix

    outputs = range(weight.ndim - weight_axes(name, weight.shape)[2])
    return qwix.dequantize(qwix.quantize(weight, jnp.int8, channelwise_axes=tuple(outputs)))


def main() -> None:
    """Prints the table."""
    model = gj.load("smollm2-135m-instruct", activations="float32", remat="products")
    params = model.params(gj.Layout().mesh(jax.devices()[:1]))
    prompts = model.tokenizer.encode_all(QUESTIONS, max_tokens=64)
    sampler = gj.Sampler(model.tokenizer.end_ids, responses=4, max_tokens=64)
    rollouts = sampler(model.policy, params, prompts, jax.random.key(0))
    score = jax.jit(partial(token_logprobs, model.policy))
    known, chosen = score(params, rollouts)[0], np.asarray(rollouts.action_PGT)
    share = sum(a.size for _, a in adapted_weights(params, ("query", "key", "value", "out", "gate", "up", "down")))
    print(f"{share / sum(a.size for a in jax.tree.leaves(params)):.2f} of the weights are in these matrices")
    print("| weights | tokens | mean gap of log-probs | 99 % are below | KL, nats a token |\n|---|---|---|---|---|")
    kinds = {"int8": in_8_bits} | ({"int8 by qwix": by_qwix} if find_spec("qwix") else {})
    for name, change in kinds.items():
        gap = (np.asarray(score(matrices(change, params), rollouts)[0]) - np.asarray(known))[chosen]
        k3 = np.mean(np.expm1(gap) - gap)  # of the float32 model and this one
        print(f"| {name} | {gap.size} | {np.abs(gap).mean():.4f} | {np.quantile(np.abs(gap), 0.99):.3f} | {k3:.5f} |")


if __name__ == "__main__":
    main()
