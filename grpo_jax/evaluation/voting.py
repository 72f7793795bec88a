"""Which reward of a mix says which responses give the same answer, for the majority of several."""

from grpo_jax.rewards import Mix, Said, said_of


def said_by(mix: Mix, right: str | None = None) -> Said | None:
    """What a response answers, as the reward with the column `right` tells it, or else the one with the largest weight
    that does; None if no reward does.
    """
    parts = zip(mix.parts, mix.labels, mix.criteria, strict=True)
    named = [part[0] for part, label, each in parts if right in (label, *(f"{label}/{name}" for name in each.names))]
    counting = sorted((part for part in mix.parts if part[1] > 0), key=lambda part: -part[1])
    found = [said_of(reward) for reward in named or [reward for reward, _ in counting]]
    return next((said for said in found if said is not None), None)
