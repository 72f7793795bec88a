"""Rewards that worker processes import in tests/test_workers.py."""

import os
import re
import sys
import time


def exact(example, response):
    return float(response == example.answer)


def hostile(example, response):
    """Waits, computes without end, dies or fails where the response says so."""
    if response == "waits":
        time.sleep(600)
    if response == "backtracks":
        re.fullmatch(r"(a+)+b", "a" * 60)
    if response == "dies":
        os._exit(0)
    if response == "kills":
        os.kill(os.getpid(), 9)
    if response == "stops":
        raise KeyboardInterrupt
    if response == "exits":
        sys.exit(0)
    if response == "fails":
        raise KeyError(response)
    return exact(example, response)


def modules(example, response):
    return float(any(name in sys.modules for name in ("jax", "flax", "numpy.f2py")))


def process(example, response):
    return float(os.getpid())


def a_second(completions, **kwargs):
    time.sleep(1.0)
    return [1.0 for _ in completions]


def logs(completions, log_metric=None):
    return [1.0 for _ in completions]


async def of_group(example, responses):
    return [{"length": len(text), "first": None} for text in responses]


def waits(example, response):
    time.sleep(600)
    return 1.0
