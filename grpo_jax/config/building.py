"""Makes the objects that a `Config` names: the arguments of `training.train`."""

from typing import Any

from grpo_jax.config.rendering import render
from grpo_jax.config.sections import Config


def build(config: Config) -> dict[str, Any]:
    """The arguments of `grpo_jax.train`, as in `train(**build(read("some.yaml")))`."""
    from grpo_jax.rewards import Mix
    from grpo_jax.training.overview import copy_bytes

    settings, task, layout = config.train.build(), config.task.build(), config.mesh.build()
    model = config.model.build()
    rewards = tuple((item.build(), item.weight) for item in config.rewards)
    teacher = None
    if config.teacher is not None:
        larger = config.teacher.build()
        _check_vocabulary(larger.shape.vocabulary, model.shape.vocabulary)
        teacher = larger.policy, larger.params(layout.mesh(copy_bytes=copy_bytes(model.policy)))
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


def _check_vocabulary(of_teacher: int, of_model: int) -> None:
    """Refuses a teacher whose vocabulary has another size than the model's."""
    if of_teacher != of_model:
        raise ValueError(
            f"The teacher has {of_teacher} tokens and the model {of_model}, but both must give log-probs of the same"
            " tokens. Use a teacher of the model's family."
        )
