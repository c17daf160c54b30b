"""What the parent hands to the web process: picklable values."""

from dataclasses import dataclass

from node.config import Config


@dataclass(frozen=True)
class WebSettings:
    """The configuration as it was at the start; what may be reloaded lies in the database."""

    config: Config
    node_id: str
    log_as_json: bool
