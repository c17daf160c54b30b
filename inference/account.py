"""What a job leaves behind beside its result: seconds, counts, and what is worth knowing."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Account:
    """What a job leaves in the record of its derived series: counts, notes, seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)

    def record(self) -> Mapping[str, object]:
        return {**self.facts, "seconds": dict(self.seconds), "notes": list(self.notes)}
