"""Durations and times as a person reads them at the terminal."""

import time

import pytest

from node.commands import terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.4, "0.4 s"), (59.0, "59 s"), (61.0, "1 min"), (7200, "2 h"), (2e5, "2 d")],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_times_are_relative_and_exact() -> None:
    now = time.time()
    assert terminal.when(None, None) == ""
    assert terminal.when(now - 185, None).startswith("3 min ago, ")
    assert terminal.when(now + 90, None).startswith("in 1 min, ") or terminal.when(
        now + 90, None
    ).startswith("in 2 min, ")
    assert terminal.when(0.0, None).endswith("1970-01-01 00:00") or "1969" in terminal.when(
        0.0, None
    )
