"""Memory of devices: what arrays take, how much there is, and how much is free."""

import math
import os
import resource
import sys
from typing import Any

import jax

HOST = "pinned_host"  # JAX's name for memory of the host that a device reads by itself


def device_bytes(tree: Any) -> int:
    """The bytes that the arrays of a tree, or their shapes with shardings, take on each device."""
    return sum(_shard_bytes(a) for a in jax.tree.leaves(tree) if a.sharding.memory_kind != HOST)


def host_bytes(tree: Any) -> int:
    """The bytes that they take in the host's memory, for each device."""
    return sum(_shard_bytes(a) for a in jax.tree.leaves(tree) if a.sharding.memory_kind == HOST)


def check_host_memory(device: Any) -> None:
    """Refuses a device that cannot read the host's memory by itself."""
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"optimizer.moments_in host needs a device that reads the host's memory ({HOST}); {device.device_kind} has"
            f" only {', '.join(kinds) or 'its own'}. Set it to device, and optimizer.moments to int8 for less memory."
        )


def _shard_bytes(a: Any) -> int:
    return a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape))


def gigabytes(tree: Any) -> str:
    """The `device_bytes` of a tree as text."""
    return f"{device_bytes(tree) / 1e9:.2f} GB"


def memory_limit(devices: list[Any]) -> int | None:
    """The bytes that a device of this process can hold. Unknown for CPUs, and for devices of other processes."""
    own = [device for device in devices if device.process_index == jax.process_index() and device.platform != "cpu"]
    stats = own[0].memory_stats() if own else None
    return stats and stats.get("bytes_limit")


def device_memory() -> int:
    """The bytes that one device of this process can hold. CPU devices share the memory of the machine."""
    limit = memory_limit(jax.local_devices())
    return _machine_bytes() // jax.local_device_count() if limit is None else limit


def free_bytes() -> int:
    """The bytes that are free on all devices of this process together; on CPUs, the memory of the machine."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats) and all("bytes_limit" in stat for stat in stats):
        return sum(stat["bytes_limit"] - stat["bytes_in_use"] for stat in stats)
    return _machine_bytes()


def peak_gigabytes() -> dict[str, float]:
    """Metrics of the most memory in use so far, in GB: of the fullest device here, where devices tell, and of this
    process.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices() if device.platform != "cpu"]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    found = {"memory/lifetime_peak/device": max(peaks) / 1e9} if peaks else {}
    return found | {"memory/lifetime_peak/process": _peak_of_process() / 1e9}


def _peak_of_process() -> float:
    """The most bytes that this process has held in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
