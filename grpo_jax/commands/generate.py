"""`grpo-jax generate`: prints one answer to one prompt, or, without a prompt, holds a conversation.

Standard output holds the answers and nothing else.
"""

import argparse
import sys
from typing import Any

import jax

from grpo_jax.commands.chat import Chat, converse, with_system
from grpo_jax.config import ConfigError, parameters
from grpo_jax.devices.cache import keep_programs
from grpo_jax.devices.mesh import Layout
from grpo_jax.learner.finite import check_weights
from grpo_jax.models import Model, load
from grpo_jax.rollout import Sampler
from grpo_jax.scoring import chosen_tokens
from grpo_jax.structs import Params, Prompts


def run(arguments: argparse.Namespace) -> int:
    """Prints the answers; returns the exit code."""
    keep_programs()
    try:
        model = load(arguments.model)
        sampler = Sampler(model.tokenizer.end_ids, responses=1, **sampler_settings(arguments))
        system, prompts = system_prompt(arguments.system, model), None
        if arguments.prompt is not None:
            asked = with_system(system, [{"role": "user", "content": arguments.prompt}]) if system else arguments.prompt
            prompts = model.tokenizer.encode_all([asked], model.policy.max_positions)
            sampler.check_room(model.policy, prompts)
        params = model.params(Layout().mesh(jax.devices()[:1]))
        check_weights(params, arguments.model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if prompts is None:
        converse(Chat(model, params, sampler, arguments.seed, system))
    else:
        _answer(model, params, sampler, prompts, arguments.seed)
    return 0


def system_prompt(given: str | None, model: Model) -> str:
    """The system prompt that was asked for; else that of the task which the run was trained with, which is told."""
    if given is not None or not model.tokenizer.has_chat_template:
        if given and not model.tokenizer.has_chat_template:
            raise ValueError("This model has no chat template, so it takes no system prompt. Leave --system out.")
        return given or ""
    run = None if model.origin is None else model.origin.run
    if run is None or not run.system:
        return ""
    print(f'system prompt of the run: "{run.system}" (--system "" leaves it out)', file=sys.stderr)
    return run.system


def _answer(model: Model, params: Params, sampler: Sampler, prompts: Prompts, seed: int) -> None:
    """Prints the answer to the one prompt."""
    print("compiling and sampling ...", file=sys.stderr)
    rollouts = sampler(model.policy, params, prompts, jax.random.key(seed))
    print(model.tokenizer.decode(chosen_tokens(rollouts)[0][0]))
    if not rollouts.ended_PG[0, 0]:
        print(f"(cut off after {sampler.max_tokens} tokens: allow more with --max-tokens)", file=sys.stderr)


def sampler_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that have the name of a parameter of the sampler."""
    known = parameters("grpo_jax.rollout:Sampler")
    return {name: value for name, value in vars(arguments).items() if name in known}
