"""How long to wait before a destination is tried again."""

from random import Random

SPREAD = 0.25  # of a delay; peers that failed together do not all come back together


def delay(failures: int, first: float, longest: float, jitter: Random) -> float:
    """Seconds to wait after `failures` failures before the last one; never out of the bounds.

    The delay doubles with each failure in a row. Where it reaches `longest`, the spread lies
    below it.
    """
    doublings = min(max(failures, 0), 64)  # beyond that the power says nothing but "long"
    high = min(longest, first * 2.0**doublings * (1.0 + SPREAD))
    low = max(first, high / (1.0 + SPREAD))
    return jitter.uniform(min(low, high), high)
