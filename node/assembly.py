"""What each part of the node is told of the configuration."""

import sys
from collections.abc import Collection, Container

from inference.request import Resources
from node.config import Config
from node.dicom import scp
from node.store import Store
from node.web.settings import WebSettings
from node.work.arrivals import Rules
from node.work.infer import Site
from node.work.models import fingerprint, specs
from storage.errors import WrongState
from storage.files import fingerprint as fingerprint_of
from storage.records import SelfTestState, SwitchName
from storage.site import control, selftests
from storage.site.audit import NODE
from storage.site.nodes import SECRET


def scp_settings(settings: Config, kept: Store) -> scp.ScpSettings:
    """The Storage SCP."""
    return scp.ScpSettings(
        ae_title=settings.node.ae_title,
        host=settings.node.host,
        port=settings.node.port,
        max_associations=settings.node.max_associations,
        idle_seconds=settings.node.idle_seconds,
        incoming=kept.files.incoming,
        min_free_bytes=settings.storage.min_free_bytes,
    )


def admission(settings: Config, kept: Store, guests: Collection[str] = ()) -> scp.Admission:
    """Who may associate, under which called AE titles; guests are those of a self-test.

    Where the configuration names no calling AE title any is let in, whoever was allowed since.
    """
    allowed = frozenset(settings.node.allowed_ae_titles)
    if allowed:
        added = control.all_on(kept.database, SwitchName.ALLOWED_AE)
        allowed |= {one.subject for one in added}
    return scp.Admission(
        called_ae_titles=frozenset(settings.called_ae_titles),
        calling_ae_titles=allowed,
        networks=tuple(str(network) for network in settings.node.allowed_networks),
        guests=frozenset(guests),
    )


def never(kept: Store, made: Container[str], series_uid: str) -> str:
    """Who has said that a series is never processed; nothing where nobody has.

    A made series takes the route of its self-test or none: by those of the configuration it would
    come to a PACS as a patient. While the test runs, it is for the node that has the route.
    """
    found = control.is_on(kept.database, SwitchName.NEVER, series_uid)
    if found is not None:
        return found.who
    test = None if series_uid in made else selftests.of_series(kept.database, series_uid)
    if test is not None and test.state is SelfTestState.RUNNING:
        raise WrongState(f"series {series_uid} is that of self-test {test.id}, which runs")
    return NODE if test is not None else ""


def rules(settings: Config) -> Rules:
    """What decides about arrivals."""
    return Rules(
        ae_title=settings.node.ae_title,
        completion=settings.completion,
        routes=settings.routes,
        destinations=settings.destinations,
        models={name: fingerprint(spec) for name, spec in specs(settings).items()},
    )


def site(settings: Config, kept: Store) -> Site:
    """What is the same for every job of this node."""
    return Site(
        secret=kept.files.secret(settings.storage.secret_file),
        station_name=settings.node.ae_title,
        timezone=settings.node.zone,
        models=specs(settings),
        resources=Resources(device=settings.inference.device),
    )


def check_secret(kept: Store, settings: Config) -> None:
    """Raise SecretMismatch for another secret: every derived series would get other UIDs."""
    secret = kept.files.secret(settings.storage.secret_file)
    kept.nodes.fact(SECRET, fingerprint_of(secret))


def web_settings(settings: Config, kept: Store) -> WebSettings:
    """The web process."""
    return WebSettings(config=settings, node_id=kept.node_id, log_as_json=not sys.stdout.isatty())
