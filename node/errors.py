"""Errors of the node itself.

NodeError
+-- ConfigError   the configuration cannot be used; one line a mistake, all of them at once
+-- UsageError    a command was given something that does not exist or does not fit
"""


class NodeError(Exception):
    """Anything that this package raises on purpose; its text holds no patient data."""


class ConfigError(NodeError):
    """The configuration cannot be used: nothing was started."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, ...]]:
        return type(self), self.problems


class UsageError(NodeError):
    """A command names something unknown or unfit; the text says what there is."""
