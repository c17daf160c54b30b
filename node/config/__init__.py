"""config.toml as frozen values; every mistake in it is found before anything starts."""

from node.config.around import Notify, Selftest, Sender, Web
from node.config.kinds import MEASURES, SENDER
from node.config.reading import DEFAULT_PATH, defaults, load
from node.config.sections import (
    RELOADABLE_NODE,
    Completion,
    Condition,
    Config,
    Delivery,
    Destination,
    Inference,
    ModelEntry,
    Node,
    Route,
    Storage,
)

__all__ = [
    "DEFAULT_PATH",
    "MEASURES",
    "RELOADABLE_NODE",
    "SENDER",
    "Completion",
    "Condition",
    "Config",
    "Delivery",
    "Destination",
    "Inference",
    "ModelEntry",
    "Node",
    "Notify",
    "Route",
    "Selftest",
    "Sender",
    "Storage",
    "Web",
    "defaults",
    "load",
]
