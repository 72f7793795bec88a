"""From a `Config` to the objects that it names: what `training.train` is called with."""

from typing import Any

from grpo_jax.config.rendering import render
from grpo_jax.config.sections import Config


def build(config: Config) -> dict[str, Any]:
    """The arguments of `grpo_jax.train` that a config stands for: `train(**build(read("some.yaml")))`."""
    from grpo_jax.rewards import Mix
    from grpo_jax.training.overview import copy_bytes

    settings, task, layout = config.train.build(), config.task.build(), config.mesh.build()
    model = config.model.build()
    rewards = tuple((part.build(), part.weight) for part in config.rewards)
    teacher = None
    if config.teacher is not None:
        taught = config.teacher.build()
        _check_teacher(taught, model)
        teacher = taught.policy, taught.params(layout.mesh(copy_bytes=copy_bytes(model.policy)))
    algorithm = config.algorithm.build(
        policy=model.policy,
        sample=config.rollout.build(ends=model.tokenizer.end_ids, decode=model.tokenizer.decode),
        decode=model.tokenizer.decode,
        reward=Mix(rewards) if rewards else task.reward,
        objective=config.objective.build(),
        optimizer=config.optimizer.build(),
        teacher=teacher,
    )
    return {
        "model": model,
        "task": task,
        "algorithm": algorithm,
        "settings": settings,
        "layout": layout,
        "run": config.run.build(),
        "config": render(config),
    }


def _check_teacher(teacher: Any, model: Any) -> None:
    """Refuses a teacher whose tokens are not the model's."""
    if teacher.shape.vocabulary != model.shape.vocabulary:
        raise ValueError(
            f"The teacher has {teacher.shape.vocabulary} tokens and the model {model.shape.vocabulary}: a teacher's"
            " log-probs are of the same tokens. Take one of the model's family."
        )
