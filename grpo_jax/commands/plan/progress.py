"""What a plan says while the compiler works: how long a program has taken so far, and about how long it still takes."""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY = 10.0  # seconds between two messages
# Seconds that programs took for a model of 28 layers and one chip on two cores, by what they do.
SECONDS = {
    **{"sampling": 23.0, "learning": 36.0, "serving": 3.0, "reading": 12.0, "decoding": 14.0, "optimiser": 8.0},
    "estimates": 10.0,  # of what would help, from shapes
}
SEVERAL = 1.5  # times as long for several chips


@dataclass
class Progress:
    """Estimates of how long the compiler takes for a model of so many layers. They learn from each program."""

    layers: int
    chips: int
    factor: float = 1.0  # of this machine

    def expected(self, kind: str) -> float:
        """About how many seconds a program of this kind takes."""
        return self.factor * SECONDS[kind] * self.layers / 28 * (SEVERAL if self.chips > 1 else 1.0)

    @contextmanager
    def during(self, kind: str, name: str, doing: str = "compiling") -> Generator[None]:
        """Says now and then that this program is compiled, until it is."""
        about, begun, ended = self.expected(kind), time.monotonic(), threading.Event()
        told = threading.Thread(target=_tell, args=(f"{doing} {name}", about, begun, ended), daemon=True)
        told.start()
        try:
            yield
        finally:
            ended.set()
            told.join()
        taken = time.monotonic() - begun
        self.factor *= (taken / about) ** 0.5 if about > 0 and taken > 1 else 1.0


def _tell(what: str, about: float, begun: float, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        taken = time.monotonic() - begun
        rest = f"about {about - taken:.0f} s more" if taken < about else f"longer than the {about:.0f} s expected"
        logging.getLogger("grpo_jax").info("%s: %.0f s so far, %s", what, taken, rest)
