"""What a process asks of the system, in its order: the output of strace as calls."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
WHOLE = re.compile(r"(?P<name>\w+)\((?P<text>.*)\) += (?P<result>-?\d+).*")
BEGUN = re.compile(r"(?P<name>\w+)\((?P<text>.*) <unfinished \.\.\.>")
RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<text>.*)\) += (?P<result>-?\d+).*")


@dataclass(frozen=True)
class Call:
    """One system call: which lines of the trace it lies between, and what stands in it."""

    name: str
    text: str
    begin: int
    end: int
    result: int

    def is_of(self, names: Iterable[str], *parts: str) -> bool:
        """True for one of these calls that succeeded and names all of these."""
        return self.result >= 0 and self.name in names and all(part in self.text for part in parts)


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls of all threads that came to an end, in the order of their ends."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        matched = LINE.fullmatch(line.rstrip("\n"))
        if matched is None:
            continue
        pid, rest = matched["pid"], matched["rest"]
        if call := BEGUN.fullmatch(rest):
            begun[pid] = number, call["text"]
        elif call := RESUMED.fullmatch(rest):
            begin, text = begun.pop(pid, (number, ""))
            yield Call(call["name"], text + call["text"], begin, number, int(call["result"]))
        elif call := WHOLE.fullmatch(rest):
            yield Call(call["name"], call["text"], number, number, int(call["result"]))
