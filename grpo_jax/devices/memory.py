"""Memory of devices: what arrays take, how much there is, and how much is free."""

import math
import os
from typing import Any

import jax


def device_bytes(tree: Any) -> int:
    """The bytes that the arrays of a tree, or their shapes with shardings, take on each device."""
    return sum(a.dtype.itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(tree))


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


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
