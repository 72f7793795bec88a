"""Versions that are known to go wrong, with the report of it, and what to install in their place."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """Versions that go wrong together, `on` a platform of JAX (None: on all) and a kind of device.

    It is an error where it `stops` training, and else a warning.
    """

    versions: dict[str, str]
    what: str
    do: str
    on: str | None = None
    kind: str = ""
    stops: bool = field(default=False, kw_only=True)


KNOWN = (
    Known(
        {"jaxlib": "==0.10.2"},
        "on a CPU, jaxlib 0.10.2 can give wrong sums of squares of a product over more than 32,768 rows"
        " (jax-ml/jax#39103); projections with a norm after them, as models have, were compared and are right",
        'pip install "jaxlib==0.10.1", or with Python 3.12 and later pip install -U jax',
        on="cpu",
    ),
    Known(
        {"libtpu": "==0.0.42.*"},
        "on a TPU, libtpu 0.0.42 gives wrong gradients of x[:, index, :] outside of jit (jax-ml/jax#39025); grpo_jax"
        " takes all gradients inside of jit, your own code may not",
        'pip install "jax[tpu]==0.10.1", or with Python 3.12 and later pip install -U "jax[tpu]"',
        on="tpu",
    ),
    Known(
        {"jax": ">=0.11.0,<0.11.2"},
        "on an RTX A6000, jax 0.11.0 and 0.11.1 were seen to compute NaN (jax-ml/jax#40633)",
        'pip install "jax[cuda12]==0.10.2"',
        on="gpu",
        kind="A6000",
    ),
    Known(
        {"flax": "==0.12.9", "jax": ">=0.11.2"},
        "flax 0.12.9 needs a name that jax 0.11.2 no longer has, HiPrimitive (google/flax#5596)",
        "pip install -U flax",
        stops=True,
    ),
    Known(
        {"jax-metal": ">=0"},
        "jax-metal works with no jax after 0.5.0, and has no new versions (jax-ml/jax#26968)",
        "pip uninstall jax-metal: JAX then uses the CPU",
        stops=True,
    ),
)
