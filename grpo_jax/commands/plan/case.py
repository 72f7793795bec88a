"""What a plan is made for: the objects of a config on a TPU slice, without a weight or a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.plan.topology import Slice
from grpo_jax.config import Call, Config, ConfigError, parameters
from grpo_jax.config.sections import wanted
from grpo_jax.devices.memory import device_bytes
from grpo_jax.devices.mesh import check_hosts, host_mesh, own_mesh, prompt_shards
from grpo_jax.devices.sharding import check_experts, devices_per_group, fit, weight_shardings, with_shardings
from grpo_jax.grpo import init
from grpo_jax.learner.microbatches import Cut, cut
from grpo_jax.learner.room import choices_for, needed_bytes, what_fits, with_policy
from grpo_jax.learner.states import check_moments, state_shardings
from grpo_jax.learner.update import check_split
from grpo_jax.models import Shape, decoder_policy, find_shape
from grpo_jax.models.load import storage
from grpo_jax.models.lora import adapted_policy, read_lora
from grpo_jax.objectives.checking import check_group
from grpo_jax.objectives.presets import likelihood
from grpo_jax.rollout import Sampler, native_sampler
from grpo_jax.rollout.sizes import prompts_held, subgroups_at_once
from grpo_jax.structs import Policy, TrainState, bucket
from grpo_jax.training.overview import copy_bytes
from grpo_jax.training.session import Settings

IN_PROCESS = "grpo_jax.judges:model"  # the judge whose weights are on the devices


@dataclass(frozen=True)
class Case:
    """A config on a slice."""

    config: Config
    algorithm: Algorithm
    sampler: Sampler
    shape: Shape
    settings: Settings
    slice: Slice
    mesh: Mesh
    host_mesh: Mesh  # what one host samples with; all of the mesh, if there is one host
    remat: str  # what the backward pass keeps

    @property
    def state(self) -> TrainState:
        """The shapes of the train state, with their shardings."""
        state = jax.eval_shape(partial(init, self.algorithm), self.algorithm.policy.shapes)
        return with_shardings(state, state_shardings(self.algorithm.optimizer, state, self.mesh))

    @property
    def longest(self) -> str:
        """The setting that bounds the tokens of an answer."""
        return "rollout.max_tokens" if self.config.sft is None else "sft.max_tokens"

    @property
    def length(self) -> int:
        """Positions of the longest prompts."""
        return bucket(self.settings.max_prompt_tokens)

    @property
    def sampled(self) -> tuple[int, int, int]:
        """What one host samples, as the sampler decides it: subgroups held at once, responses in each, and rounds."""
        prompts, sampler, hosts = self.settings.prompts, self.sampler, self.mesh.size // self.host_mesh.size
        spread = devices_per_group(prompts, sampler.responses, self.mesh)
        subgroups, at_once = prompts * spread // hosts, subgroups_at_once(sampler.at_once, spread, hosts)
        held = prompts_held(subgroups, at_once, prompt_shards(self.host_mesh))
        return held, sampler.responses // spread, -(-subgroups // held)

    @property
    def choices(self) -> list[int]:
        """The numbers of responses that a device can learn from at once, all of them first."""
        return choices_for(self.algorithm, self.settings.prompts, self.sampler.responses, self.mesh)

    @property
    def responses_at_once(self) -> int:
        """How many responses a device learns from at once: what the config allows, or what is estimated to fit."""
        allowed = self.algorithm.responses_at_once
        if allowed is not None:
            return next(n for n in self.choices if n <= allowed)
        sizes = self.settings.prompts, self.sampler.responses, self.length, self.sampler.max_tokens
        return what_fits(self.algorithm, *sizes, self.mesh, int(self.slice.chip.memory)).responses_at_once

    def estimated_peak(self, responses_at_once: int) -> int:
        """The bytes that a device needs to learn from so many responses at once, estimated without compiling."""
        G, T, most = self.sampler.responses, self.sampler.max_tokens, self.choices[0]
        return needed_bytes(self.algorithm, responses_at_once, most, G, self.length, T, self.mesh)

    def cut(self, responses_at_once: int) -> Cut:
        """How minibatches are cut if each device learns from so many responses at once."""
        minibatches = self.algorithm.minibatches
        return cut(self.settings.prompts, self.sampler.responses, minibatches, responses_at_once, self.mesh)

    @property
    def reference_bytes(self) -> int:
        """The bytes of the reference policy on each device; 0 if the objective has none."""
        return device_bytes(self.state.reference)

    @property
    def teacher_bytes(self) -> int:
        """The bytes of the teacher's weights on each device; 0 if there is none."""
        if self.algorithm.teacher is None:
            return 0
        params = self.algorithm.teacher[1]
        return device_bytes(with_shardings(params, weight_shardings(params, self.mesh)))

    @property
    def judge_bytes(self) -> int:
        """The bytes of the weights of a judge in this process on each device; 0 if there is none."""
        if self.algorithm.judge is None:
            return 0
        params, mesh = self.algorithm.judge[1], own_mesh(self.mesh, self.mesh.devices.flat[0].process_index)
        return device_bytes(with_shardings(params, weight_shardings(params, mesh)))

    @property
    def other_bytes(self) -> int:
        """The bytes on each device of the weights of a teacher and a judge."""
        return self.teacher_bytes + self.judge_bytes


def assemble(config: Config, found: Slice) -> Case:
    """The case of a config on a slice; refuses what training would refuse, too."""
    settings: Settings = config.train.build()
    shape, policy = find_policy(config.model)
    teacher = None
    if config.teacher is not None:
        taught = find_policy(config.teacher)[1]
        teacher = taught, taught.shapes
    judge = None
    if config.judge is not None and config.judge.target == IN_PROCESS:
        rest = {"remat": "full", "replay_experts": False, "weights": "float32"}
        asked = find_policy(config.judge, rest)[1]
        judge = asked, asked.shapes
    sampler, objective = native_sampler(config.rollout.build(ends=(0,), decode=str)), config.objective.build()
    if config.sft is not None:  # one given answer to each prompt, and a greedy one to as many held-out prompts
        sampler = replace(sampler, responses=1, max_tokens=config.sft.arguments["max_tokens"])
        objective = likelihood(config.sft.arguments["weighting"])
    algorithm = config.algorithm.build(
        policy=policy,
        sample=sampler,
        decode=str,
        reward=len,
        objective=objective,
        optimizer=config.optimizer.build(**wanted(config.optimizer, {"adapters": bool(policy.frozen)})),
        teacher=teacher,
        judge=judge,
    )
    mesh = config.mesh.build().mesh(found.devices(), copy_bytes(policy), found.chip.memory)
    check_hosts(mesh)
    check_experts(policy.shapes, mesh)
    check_moments(algorithm.optimizer, mesh)
    check_split(algorithm, settings.prompts, sampler.responses, mesh)
    check_group(algorithm.objective, sampler.responses)
    one = mesh if found.hosts == 1 else host_mesh(mesh, found.host.devices())
    sizes = settings.prompts, sampler.responses, bucket(settings.max_prompt_tokens), sampler.max_tokens
    how = what_fits(algorithm, *sizes, mesh, int(found.chip.memory))
    asked = _loaded(config.model)["remat"] if how.remat is None else how.remat
    remat = "full" if asked == "auto" else asked
    algorithm = with_policy(algorithm, how.policy)
    return Case(config, algorithm, sampler, shape, settings, found, mesh, one, remat)


def find_policy(call: Call, rest: Mapping[str, Any] | None = None) -> tuple[Shape, Policy]:
    """The shape and the policy that a section of a config means, as they are on a TPU; `rest` is what it does not say.

    An error has the place of the key that it is about, as it has when a model is loaded.
    """
    try:
        return _policy({**_loaded(call), **(rest or {})})
    except (ValueError, OSError) as error:
        raise ConfigError(call.blame(str(error))) from error


def _loaded(call: Call) -> Mapping[str, Any]:
    """What `load` would be given; a random tiny model is planned as the model of that name."""
    if "name" in call.arguments:
        return call.arguments
    if call.target != "grpo_jax.models:tiny":
        raise ValueError(f"{call.name}.use is {call.target}, and only models with a `name` can be planned. Name one.")
    return {name: each.default for name, each in parameters("grpo_jax.models:load").items()} | {"name": "tiny"}


def _policy(model: Mapping[str, Any]) -> tuple[Shape, Policy]:
    shape = find_shape(model["name"])
    dtype = jnp.dtype("bfloat16" if model["activations"] == "auto" else model["activations"])
    lora = None if model.get("lora") is None else read_lora(model["lora"])
    stored = storage(model["weights"], dtype, lora)
    policy = decoder_policy(shape, dtype, model["remat"], "tpu", model["replay_experts"], stored.weights)
    return shape, policy if lora is None else adapted_policy(policy, lora, stored.int8)


def fitted(tree: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    """Shapes that are all divided by one rule."""
    return with_shardings(tree, jax.tree.map(lambda a: fit(spec, a.shape, mesh), tree))
