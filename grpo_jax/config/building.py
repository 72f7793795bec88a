"""Makes the objects that a `Config` names: the arguments of `training.train`."""

import logging
import re
from dataclasses import replace
from typing import Any, TypeVar

from grpo_jax.config.loading import failed, load
from grpo_jax.config.rendering import render
from grpo_jax.config.sections import SECTIONS, Call, Config, wanted
from grpo_jax.config.values import COMMAND_LINE, ConfigError


def build(config: Config) -> dict[str, Any]:
    """The arguments of `grpo_jax.train`, as in `train(**build(read("some.yaml")))`.

    Of a config that was read with `sft=True` they are those of a run on given answers.
    """
    from grpo_jax.judges import ModelJudge
    from grpo_jax.models import Model
    from grpo_jax.objectives import Objective
    from grpo_jax.rewards import Mix
    from grpo_jax.tasks import Task

    settings, task, layout = config.train.build(), built(config.task, Task), config.mesh.build()
    model = built(config.model, Model)
    task = task if config.environment is None else replace(task, environment=environment_of(config.environment, task))
    _compare_rate(config, model.lora is not None)
    judge = None if config.judge is None else _judge(config.judge, model, layout)
    supervised = None if config.sft is None else config.sft.build()
    rewards = tuple((item.build(judge=judge), item.weight) for item in config.rewards)
    teacher = None if config.teacher is None or supervised is not None else _teacher(config.teacher, model, layout)
    algorithm = config.algorithm.build(
        policy=model.policy,
        sample=config.rollout.build(ends=model.tokenizer.end_ids, decode=model.tokenizer.decode),
        decode=model.tokenizer.decode,
        reward=Mix(rewards) if rewards else task.reward,
        objective=built(config.objective, Objective) if supervised is None else supervised.objective,
        optimizer=config.optimizer.build(**wanted(config.optimizer, {"adapters": model.lora is not None})),
        teacher=teacher,
        judge=(judge.policy, judge.params) if isinstance(judge, ModelJudge) else None,
    )
    if supervised is not None:
        answers = None if config.answers is None else built(config.answers, Task)
        task, algorithm = supervised.parts(model, task, algorithm, answers)
    return {
        "model": model,
        "task": task,
        "algorithm": algorithm,
        "settings": settings,
        "layout": layout,
        "evaluation": config.evaluation.build(),
        "run": config.run.build(),
        "config": render(config),
    }


def environment_of(call: Call, task: Any) -> Any:
    """The environment that a section names, or that of the task with other limits."""
    from grpo_jax.environments import Configured

    found = call.build()
    if not isinstance(found, Configured):
        return found
    try:
        return found.built(load, task.environment)
    except ValueError as error:
        raise ConfigError(call.blame(str(error))) from error
    except Exception as error:
        raise ConfigError(call.blame(failed(error))) from error


def _compare_rate(config: Config, adapters: bool) -> None:
    """Warns where adapters are asked for on the command line, and the rate is that of a file for all weights."""
    asked, rate = config.model.places.get("lora", ""), config.optimizer.places.get("learning_rate", COMMAND_LINE)
    if adapters and asked.startswith(COMMAND_LINE) and not rate.startswith(COMMAND_LINE):
        logging.getLogger("grpo_jax").warning(
            "%s: optimizer.learning_rate was chosen before model.lora was added on the command line: adapters usually"
            " take ten times the rate of all weights (docs/lora.md)",
            rate,
        )


def _judge(call: Call, model: Any, layout: Any) -> Any:
    """A judge; one that is a model is divided over the devices as the model that is trained is."""
    from grpo_jax.judges import Judge
    from grpo_jax.training.overview import copy_bytes

    mesh = layout.mesh(copy_bytes=copy_bytes(model.policy))
    return built(call, Judge, **wanted(call, {"mesh": mesh}))


def _teacher(call: Call, model: Any, layout: Any) -> tuple[Any, Any]:
    """The policy and the weights of a teacher, where those of the model will be."""
    from grpo_jax.models import Model
    from grpo_jax.training.overview import copy_bytes

    larger = built(call, Model)
    _check_vocabulary(larger.shape.vocabulary, model.shape.vocabulary)
    return larger.policy, larger.params(layout.mesh(copy_bytes=copy_bytes(model.policy)))


T = TypeVar("T")


def built(call: Call, kind: type[T], **supplied: Any) -> T:
    """What a call gives, which has to be of a kind; a function of the user may give anything."""
    found = call.build(**supplied)
    if not isinstance(found, kind):
        given = f"{call.name}.use gave an object of type {type(found).__name__}"
        raise ConfigError(call.blame(f"{given}; {call.target} has to return a {kind.__name__}"))
    return found


def locate(config: Config, message: str) -> str:
    """A message of a check that knows no config, after the place of the key that it names with its section."""
    for name in SECTIONS:
        call = getattr(config, name)
        for key, place in call.places.items() if isinstance(call, Call) else ():
            if re.search(rf"(?<![\w.]){name}\.{re.escape(key)}(?!\w)", message):
                return f"{place}: {message}"
    return message


def _check_vocabulary(of_teacher: int, of_model: int) -> None:
    """Refuses a teacher whose vocabulary has another size than the model's."""
    if of_teacher != of_model:
        raise ValueError(
            f"The teacher has {of_teacher} tokens and the model {of_model}, but both must give log-probs of the same"
            " tokens. Use a teacher of the model's family."
        )
