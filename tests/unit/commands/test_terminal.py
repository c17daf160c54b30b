"""Times as a person reads them at the terminal."""

import time

from node.commands import terminal


def test_times_are_relative_and_exact() -> None:
    now = time.time()
    assert terminal.when(None, None) == ""
    assert terminal.when(now - 185, None).startswith("3 min ago, ")
    assert terminal.when(now + 200, None).startswith("in 3 min, ")
    assert terminal.when(0.0, None).endswith("1970-01-01 00:00") or "1969" in terminal.when(
        0.0, None
    )
