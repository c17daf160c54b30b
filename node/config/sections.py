"""The tables of config.toml as frozen values, complete with their defaults."""

from collections.abc import Mapping
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, model_validator

from node.config.around import Notify, Selftest, Sender, Web
from node.config.base import Section
from node.config.kinds import (
    ABOVE_ZERO,
    AE_TITLE,
    AE_TITLES,
    CONDITION,
    HOST,
    NAME,
    NETWORK,
    ZERO_OR_MORE,
    AeTitle,
    AeTitleOrEmpty,
    DatabaseUrl,
    DestinationName,
    FolderPath,
    Host,
    MatchKey,
    Name,
    OptionalPath,
    Regex,
    RisingSeconds,
    Scalar,
    SomeNetwork,
    TimezoneName,
    is_scalar,
    not_yet,
)
from node.errors import UsageError

LEAST_FACTOR, MOST_FACTOR = 2, 10
WHOLE_OR_ZERO = "a whole number, or 0 for no limit"
# What of [node] a running node takes over when it reads the file again.
RELOADABLE_NODE = ("allowed_ae_titles", "allowed_networks")


class Node(Section):
    """Who the node is, and whom it lets in."""

    ae_title: AeTitle = Field("MIDSLICE", description=AE_TITLE)
    host: Host = Field("0.0.0.0", description=HOST)  # noqa: S104 - its peers are other machines
    port: int = Field(11112, ge=0, le=65535, description="integer 0-65535")
    allowed_ae_titles: tuple[AeTitle, ...] = Field((), strict=False, description=AE_TITLES)
    allowed_networks: tuple[SomeNetwork, ...] = Field((), strict=False, description=NETWORK)
    max_associations: int = Field(50, ge=1, le=1000, description="integer 1-1000")
    idle_seconds: float = Field(900.0, gt=0, description=ABOVE_ZERO)
    shutdown_seconds: float = Field(30.0, ge=0, description=ZERO_OR_MORE)
    timezone: TimezoneName = Field("", description='a time zone as "Europe/Berlin", or ""')

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the times that people and results see; None is the system's own."""
        return ZoneInfo(self.timezone) if self.timezone else None


class Storage(Section):
    """Where everything is kept, and for how long."""

    # Defaults of paths are text as in a file, and validated as that is.
    folder: FolderPath = Field("var", description="a path")  # type: ignore[assignment]
    database: DatabaseUrl = Field("", description='an SQLAlchemy URL, or ""')
    secret_file: OptionalPath = Field("", description='a path, or ""')  # type: ignore[assignment]
    min_free_gb: float = Field(5.0, ge=0, description=ZERO_OR_MORE)
    keep_days: float = Field(7.0, ge=0, description=ZERO_OR_MORE)
    keep_unrouted_days: float = Field(1.0, ge=0, description=ZERO_OR_MORE)
    keep_audit_days: float = Field(0.0, ge=0, description=ZERO_OR_MORE)

    @property
    def min_free_bytes(self) -> int:
        """The reserve, in bytes."""
        return int(self.min_free_gb * 1e9)


class Completion(Section):
    """When an arrival is complete, and how much may come of arrivals in a day."""

    quiet_seconds: float = Field(30.0, gt=0, description=ABOVE_ZERO)
    open_association_seconds: float = Field(120.0, ge=0, description=ZERO_OR_MORE)
    results_per_study: int = Field(100, ge=0, description=WHOLE_OR_ZERO)
    reruns: int = Field(20, ge=0, description=WHOLE_OR_ZERO)


class Inference(Section):
    """Where models run, and how much they may take."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description='"auto", "cpu", "cuda" or "cuda:1"'
    )
    workers: int = Field(1, ge=1, le=64, description="integer 1-64")
    job_minutes: float = Field(30.0, gt=0, description=ABOVE_ZERO)
    memory_gb: float = Field(0.0, ge=0, description=ZERO_OR_MORE)


class Delivery(Section):
    """How long a destination that does not answer is tried again."""

    retry_seconds: RisingSeconds = Field(
        (30.0, 600.0), strict=False, description="[first, longest], two numbers above 0"
    )
    give_up_hours: float = Field(24.0, gt=0, description=ABOVE_ZERO)
    echo_minutes: float = Field(5.0, ge=0, description=ZERO_OR_MORE)


class Destination(Section):
    """A peer AE that gets results."""

    name: DestinationName = Field(description=NAME)
    ae_title: AeTitle = Field(description=AE_TITLE)
    host: Host = Field(description=HOST)
    port: int = Field(ge=1, le=65535, description="integer 1-65535")
    sends_as: tuple[AeTitle, ...] = Field((), strict=False, description=AE_TITLES)
    calling_ae_title: AeTitleOrEmpty = Field("", description=AE_TITLE)
    commitment: Annotated[None, BeforeValidator(not_yet)] = Field(None, validate_default=False)


class Condition(Section):
    """What one attribute or measure must be; everything that is set must hold."""

    values: tuple[Scalar, ...] = Field((), alias="*")  # any of; written as a value or a list
    min: float | None = None
    max: float | None = None
    regex: Regex | None = None
    has: Scalar | None = None

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, given: Any) -> Any:
        if isinstance(given, cls):
            return given
        if isinstance(given, dict):
            if not given:
                raise ValueError(CONDITION)
            return given
        values = given if isinstance(given, list) else [given]
        if not values or not all(is_scalar(value) for value in values):
            raise ValueError(CONDITION)
        return {"*": tuple(values)}

    @model_validator(mode="after")
    def _in_order(self) -> "Condition":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("a table whose min is at most its max")
        return self


class Route(Section):
    """A rule from an arrival to a model and to destinations."""

    name: Name = Field(description=NAME)
    called_ae_title: AeTitleOrEmpty = Field("", description=AE_TITLE)
    calling_ae_title: AeTitleOrEmpty = Field("", description=AE_TITLE)
    match: Mapping[MatchKey, Condition] = Field(
        default_factory=dict, description="a table of attribute keywords"
    )
    model: str = Field(description="the name of a model")
    factor: int | None = Field(None, ge=LEAST_FACTOR, le=MOST_FACTOR, description="integer 2-10")
    target_spacing_mm: float | None = Field(None, gt=0, description=ABOVE_ZERO)
    include_received: bool = Field(True, description="true or false")
    accept_derived: bool = Field(True, description="true or false")
    despite_thin: bool = Field(False, description="true or false")
    slice_thickness: Literal["source", "spacing"] = Field(
        "source", description='"source" or "spacing"'
    )
    across_missing: Literal["hold", "leave"] = Field("hold", description='"hold" or "leave"')
    most_gap_mm: float = Field(12.0, gt=0, description=ABOVE_ZERO)
    classical_below: float = Field(0.1, ge=0, le=1, description="a number from 0 to 1")
    hold_below: float = Field(0.05, ge=0, le=1, description="a number from 0 to 1")
    priority: int = Field(5, ge=1, le=9, description="integer 1-9")
    destinations: tuple[str, ...] = Field(
        strict=False, description="a list of names of destinations; [] is shadow mode"
    )


class ModelEntry(Section):
    """A site's own model: an importable class, its weights by path and SHA-256."""

    name: Name = Field(description=NAME)
    class_path: str = Field(
        alias="class",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description='an importable class as "package.module:Class"',
    )
    weights: OptionalPath = Field("", description='a path, or ""')  # type: ignore[assignment]
    weights_sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="64 hexadecimal digits, lower case"
    )


class Config(Section):
    """The whole file. Relative paths in it have become absolute."""

    path: Path
    node: Node
    storage: Storage
    completion: Completion
    inference: Inference
    delivery: Delivery
    web: Web
    notify: Notify
    selftest: Selftest
    senders: tuple[Sender, ...] = ()
    destinations: tuple[Destination, ...] = ()
    routes: tuple[Route, ...] = ()
    models: tuple[ModelEntry, ...] = ()

    @property
    def folder(self) -> Path:
        """The storage folder, absolute."""
        return self.storage.folder

    @property
    def called_ae_titles(self) -> tuple[str, ...]:
        """Every AE title that the node answers to, its own first."""
        titles = [self.node.ae_title, *(route.called_ae_title for route in self.routes)]
        return tuple(dict.fromkeys(title for title in titles if title))

    def destination(self, name: str) -> Destination:
        """The destination of that name."""
        for destination in self.destinations:
            if destination.name == name:
                return destination
        names = ", ".join(entry.name for entry in self.destinations) or "none is configured"
        raise UsageError(f"unknown destination '{name}'; there are: {names}")
