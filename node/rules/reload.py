"""What of a configuration that was read again may be applied while the node runs."""

from collections.abc import Iterator

from node.config import RELOADABLE_NODE, Config

RELOADABLE = (
    "destinations",
    "routes",
    "completion",
    "delivery",
    "senders",
    "notify",
    "selftest",
)
FIXED = ("storage", "inference", "web", "models")


def reloaded(running: Config, read: Config) -> Config:
    """`running` with everything of `read` that may change at run time."""
    node = {name: getattr(read.node, name) for name in RELOADABLE_NODE}
    changes: dict[str, object] = {name: getattr(read, name) for name in RELOADABLE}
    changes["node"] = running.node.model_copy(update=node)
    return running.model_copy(update=changes)


def needs_restart(running: Config, read: Config) -> Iterator[str]:
    """The key paths that differ and that only a restart can apply, such as `node.port`."""
    for section in ("node", *FIXED):
        before, after = getattr(running, section), getattr(read, section)
        if isinstance(before, tuple):
            if before != after:
                yield section
            continue
        for name in type(before).model_fields:
            fixed = section != "node" or name not in RELOADABLE_NODE
            if fixed and getattr(before, name) != getattr(after, name):
                yield f"{section}.{name}"
