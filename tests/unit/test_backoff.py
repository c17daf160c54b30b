"""The back-off of a destination that fails."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from node.rules.backoff import SPREAD, delay

seconds = st.floats(min_value=0.01, max_value=1e5)


@given(st.integers(-1, 10_000), seconds, seconds, st.integers())
def test_a_delay_never_leaves_its_bounds(
    failures: int, one: float, other: float, seed: int
) -> None:
    first, longest = sorted((one, other))
    assert first <= delay(failures, first, longest, Random(seed)) <= longest


def test_each_failure_in_a_row_doubles_the_delay_until_the_longest() -> None:
    jitter = Random(7)
    waits = [delay(failures, 30.0, 600.0, jitter) for failures in range(8)]
    for wait, doubled in zip(waits, [30.0, 60.0, 120.0, 240.0, 480.0], strict=False):
        assert doubled <= wait <= doubled * (1 + SPREAD)
    assert all(600.0 / (1 + SPREAD) <= wait <= 600.0 for wait in waits[5:])


def test_what_failed_together_does_not_come_back_together() -> None:
    jitter = Random(7)
    for failures in (0, 3, 50):
        waits = {delay(failures, 30.0, 600.0, jitter) for _ in range(100)}
        assert len(waits) == 100
        assert max(waits) > 1.15 * min(waits)
