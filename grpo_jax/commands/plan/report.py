"""`grpo-jax plan`: what a config needs on a TPU slice or another device, whether it fits, and what would help."""

import argparse
import logging
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import jax

from grpo_jax.algorithm import Algorithm
from grpo_jax.commands.plan import timing
from grpo_jax.commands.plan.advice import Advice, Settings, advice, expected
from grpo_jax.commands.plan.case import Case, assemble
from grpo_jax.commands.plan.estimate import ACCURACY, estimated
from grpo_jax.commands.plan.lengths import Decoded, Lengths, Size, read_lengths
from grpo_jax.commands.plan.programs import Phase, decoding_inputs, plan_learning, plan_sampling
from grpo_jax.commands.plan.progress import Progress
from grpo_jax.commands.plan.search import Planned, largest, search, timed, tried
from grpo_jax.commands.plan.topology import GIB, AnyDevice, device_with, find_slice
from grpo_jax.commands.printing import is_for_people, print_json, show
from grpo_jax.config import Config, ConfigError, locate, read
from grpo_jax.devices.memory import device_bytes, host_bytes
from grpo_jax.structs import Params
from grpo_jax.training.overview import table as overview

TOLD = logging.getLogger("grpo_jax")
UTILISATION = 0.4  # of arithmetic while learning, and of the links between chips
DECODING = 0.85  # of memory's bandwidth while decoding, by the compiler's bundles (`--time`)


def run(arguments: argparse.Namespace) -> int:
    """Prints what fits, or how long a step takes; 0 if it fits, 1 if not."""
    jax.config.update("jax_enable_compilation_cache", False)  # such programs cannot be loaded again without a TPU
    config: Config = arguments.config
    try:
        lengths = read_lengths(arguments.lengths)
        if arguments.time and arguments.topology is None:
            raise ValueError(
                "--time needs a slice to compile for: give --topology, such as v5e-8, in place of --memory."
            )
        found = find_slice(arguments.topology) if arguments.memory is None else device_with(arguments.memory)
        case = assemble(config, found)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(locate(config, str(error))) from error
    if not arguments.quiet:
        show(introduction(case))
    if arguments.time:
        return show_times(arguments, case, lengths)
    TOLD.info("compiling ..." if figures_are_exact(case) else "estimating from shapes ...")
    progress = Progress(case.shape.layers, case.slice.chips)
    planned = _compiled(case, progress) if figures_are_exact(case) else Planned(case, *estimated(case))
    figures = measure(*planned, lengths)
    if not planned.fits:
        figures |= said(_advised(arguments, planned, progress))
    if arguments.json:
        print_json(arguments, figures)
    if is_for_people(arguments):
        show(f"{table(figures, planned.sample, planned.train)}\n{verdict(figures)}")
    return 0 if figures["fits"] else 1


def _advised(arguments: argparse.Namespace, planned: Planned, progress: Progress) -> Advice:
    """Settings with which it fits, after some that were tried."""

    @cache
    def changed(settings: Settings) -> Case | None:
        try:
            config = read(arguments.path, [*arguments.overrides, *" ".join(settings).split()], arguments.sft)
            return assemble(config, planned.case.slice)
        except ValueError:  # they do not go together
            return None

    def compiled(settings: Settings, guess: Planned) -> Planned:
        return tried(planned, guess, settings, progress) if figures_are_exact(planned.case) else guess

    @contextmanager
    def choosing() -> Generator[None]:
        with progress.during("estimates", "what would help", "estimating"), _only_others():
            yield

    return advice(planned, lambda known, settings: expected(known, changed(settings)), compiled, choosing)


@contextmanager
def _only_others() -> Generator[None]:
    """A block in which this thread logs nothing, such as what each of many cases would learn from at once."""
    this = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != this

    TOLD.addFilter(of_others)
    try:
        yield
    finally:
        TOLD.removeFilter(of_others)


def said(found: Advice) -> dict[str, Any]:
    """Advice as JSON has it."""
    planned = found.planned
    return {
        "advice": list(found.settings),
        "advice_fits": planned.fits,
        "advice_peak_hbm_bytes": planned.peak,
    }


def show_times(arguments: argparse.Namespace, case: Case, lengths: Lengths) -> int:
    """Prints at least how long each part of a step takes; 0 if every program fits the slice, 1 if not."""
    figures = timing.figures(case, timing.timed(case, lengths), lengths)
    if arguments.json:
        print_json(arguments, figures)
    if is_for_people(arguments):
        show(timing.table(figures))
    return int(any(phase["errors"] for phase in figures["phases"].values()))


def verdict(figures: Mapping[str, Any]) -> str:
    """Whether it fits, and what would help."""
    estimate = "" if figures["compiled"] else f" by this estimate, which compiled nothing: {ACCURACY}"
    if figures["fits"]:
        return f"It fits{estimate}."
    settings, peak = " ".join(figures["advice"]), gib(figures["advice_peak_hbm_bytes"]).strip()
    if figures["advice_fits"]:
        return f"It does not fit{estimate}.\nWith {settings} it fits: {peak}."
    larger = "a larger slice" if figures["compiled"] else "a device with more memory"
    even = f"Even with {settings} it needs {peak}; it is for" if settings else "No setting helps; it is for"
    return f"It does not fit{estimate}.\n{even} {larger}."


def figures_are_exact(case: Case) -> bool:
    """Whether the programs are compiled for the device; if not, figures are estimated from shapes."""
    return not isinstance(case.slice, AnyDevice)


def _compiled(case: Case, progress: Progress) -> Planned:
    """What sampling needs, and learning by the number of responses at once, as the compiler says."""
    learn = partial(plan_learning, case, case.responses_at_once)
    sample = timed(progress, "sampling", "sampling", partial(plan_sampling, case)) or Phase(None)
    train = timed(progress, "learning", "learning", learn) or Phase(None)
    alone = sample.peak is None or device_bytes(case.state) + case.other_bytes > case.slice.chip.memory
    return Planned(case, sample, {case.responses_at_once: train} if alone else search(case, train, progress))


def introduction(case: Case) -> str:
    """What is planned, as text."""
    sampler, found = case.sampler, case.slice
    devices = overview(
        case.mesh, found.hosts, case.algorithm.policy, case.state, case.settings.prompts, sampler.responses
    )
    how = "" if case.algorithm.responses_at_once is not None else " (estimated from memory)"
    remat = f"model.remat={case.remat}"
    return (
        f"{found.name}: {found.chips} x {found.chip.memory / GIB:.2f} GiB\n{devices}\n"
        f"{case.settings.prompts} prompts of {case.length} tokens, {sampler.responses} responses of"
        f" {sampler.max_tokens}; a device learns from {case.responses_at_once} responses at once{how}, {remat}"
    )


def measure(case: Case, sample: Phase, learned: dict[int, Phase], lengths: Lengths) -> dict[str, Any]:
    """All figures, as JSON has them: bytes on each device, and seconds. `learned` is what learning needs, by the number
    of responses at once.
    """
    train = learned[case.responses_at_once]
    served, shared, own, _ = decoding_inputs(case)
    weights = device_bytes(case.state.params)
    figures = {
        "compiled": figures_are_exact(case),
        "fits": Planned(case, sample, learned).fits,
        "hbm_limit_bytes": case.slice.chip.memory,
        "weights_bytes": weights,
        "weights_type": _types(case.state.params),
        "optimizer_bytes": device_bytes(case.state.opt_state),
        "optimizer_host_bytes": host_bytes(case.state.opt_state),
        "reference_bytes": case.reference_bytes,
        "teacher_bytes": case.teacher_bytes,
        "judge_bytes": case.judge_bytes,
        "sampling_copy_bytes": device_bytes(served),
        "kv_cache_bytes": device_bytes((shared, own)),
        "responses_at_once": case.responses_at_once,
        "largest_responses_at_once": largest(case, learned) if sample.peak is not None else None,
        "ppo_critic_bytes": 2 * weights + device_bytes(case.state.opt_state) + host_bytes(case.state.opt_state),
        "sample": plain(sample),
        "train": plain(train),
    }
    return figures | (estimate(case, figures, lengths) if figures["compiled"] else {})


def flops(algorithm: Algorithm) -> int:
    """FLOP for each weight and token of learning: 2 forwards, 2 that are computed again, 2 for the gradients of
    activations, and 2 for those of weights, unless these are frozen. By layer, a backward pass before takes 6 more.
    """
    whole = 6 if algorithm.policy.frozen else 8
    return whole + 6 if algorithm.gradients == "by_layer" else whole


def estimate(case: Case, figures: dict[str, Any], lengths: Lengths) -> dict[str, Any]:
    """Seconds of a step at `UTILISATION` and `DECODING` of the chip's rates, learning with every response at its
    longest.

    Decoding reads the weights and the keys and values of the sampler's buffers for each token. Transfers between chips
    are assumed to overlap with neither.
    """
    sampler, chip = case.sampler, case.slice.chip
    P, G, T = case.settings.prompts, sampler.responses, sampler.max_tokens
    size = sum(a.size for a in jax.tree.leaves(case.algorithm.policy.shapes))
    learning = flops(case.algorithm) * size * P * (case.length + G * T) / (case.slice.chips * chip.flops)
    decoding = sum(read_bytes(case, *each) for each in timing.decoded(case, lengths).items()) / chip.bandwidth
    moving = {phase: figures[phase]["collective_bytes"] / chip.links for phase in ("sample", "train")}
    return {
        "lengths": str(lengths),
        "estimated_sample_s": decoding / DECODING + moving["sample"] / UTILISATION,
        "estimated_train_s": (learning + moving["train"]) / UTILISATION,
    }


def read_bytes(case: Case, size: Size, found: Decoded) -> float:
    """The bytes that a device reads for the tokens of rows of this size: the weights, and what it reads of caches."""
    served, shared, own, _ = decoding_inputs(case, size)
    live = timing.live_of(case, size, found)
    share = 1.0 if live is None else live.share
    return found.tokens * (device_bytes((served, shared)) + share * device_bytes(own))


def plain(phase: Phase) -> dict[str, int | None]:
    """A phase as JSON has it."""
    return {
        "peak_hbm_bytes": phase.peak,
        "argument_bytes": phase.argument,
        "temp_bytes": phase.temporary,
        "collective_bytes": phase.collective,
    }


def _types(params: Params) -> str:
    """The types of matrices that are stacked by layer; adapters are left out."""
    return " and ".join(sorted({a.dtype.name for a in jax.tree.leaves(params.get("base", params)) if a.ndim > 2}))


def gib(number: int | float | None) -> str:
    """A number of bytes, as text."""
    if number is None:
        return "more than there is"
    return f"{number / GIB:7.2f} GiB" if number > GIB / 10 else f"{number / 2**20:7.2f} MiB"


def _beside(in_host: int) -> str:
    """What of the optimiser is in the host's memory, as text."""
    return f"   and {gib(in_host).strip()} in the host's memory for each device" if in_host else ""


def table(figures: dict[str, Any], sample: Phase, train: Phase) -> str:
    """The figures as a table for people."""
    most = figures["largest_responses_at_once"]
    lines = [
        f"weights         {gib(figures['weights_bytes'])}   ({figures['weights_type']}, on each device)",
        f"optimiser       {gib(figures['optimizer_bytes'])}{_beside(figures['optimizer_host_bytes'])}",
        f"reference       {gib(figures['reference_bytes'])}",
        *([f"teacher         {gib(figures['teacher_bytes'])}"] if figures["teacher_bytes"] else []),
        *([f"judge           {gib(figures['judge_bytes'])}"] if figures["judge_bytes"] else []),
        f"sampling copy   {gib(figures['sampling_copy_bytes'])}",
        f"keys and values {gib(figures['kv_cache_bytes'])}",
        f"sampling needs  {gib(sample.peak)}   temporaries {gib(sample.temporary)},"
        f" moved between devices {gib(sample.collective)} a step",
        f"learning needs  {gib(train.peak)}   temporaries {gib(train.temporary)},"
        f" moved between devices {gib(train.collective)} a step",
        f"limit           {gib(figures['hbm_limit_bytes'])}",
        f"largest that fits: {f'algorithm.responses_at_once={most}' if most else 'no number of responses at once'}",
        *(phase.message for phase in (sample, train) if phase.message),
        f"PPO's critic would add {gib(figures['ppo_critic_bytes'])} (a second model and its optimiser)",
    ]
    if figures["compiled"]:
        lines.append(
            f"estimate: sampling {figures['estimated_sample_s']:.1f} s, learning {figures['estimated_train_s']:.1f} s a"
            f" step, at {DECODING} of bandwidth and {UTILISATION} of arithmetic and links; {figures['lengths']}"
        )
    return "\n".join(lines)
