"""Opens the rows and files of a configuration: the same parts for the node and for a command."""

import time
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import tzinfo

from node.config import Config
from node.dicom.admission import Admission
from node.dicom.tls import mark
from storage.archive import Archive
from storage.backup import back_up
from storage.commitment_scp import OwedReports
from storage.commitment_scu import Commitments
from storage.database import ClusterClock, Database
from storage.errors import StorageError
from storage.files import Files, keep_to_ourselves
from storage.jobs import Queue
from storage.leases import Holder
from storage.ledger import Ledger
from storage.records import SwitchName
from storage.site import control
from storage.site.audit import Audit
from storage.site.nodes import Nodes

# Longer than a peer may be silent; a dead node's leases end at its next start.
LEASE_SECONDS = 120.0


@dataclass(frozen=True)
class Store:
    """Everything that is kept, opened; Queue and Ledger act in the name of `node_id`."""

    config: Config
    node_id: str
    database: Database
    files: Files
    archive: Archive
    queue: Queue
    ledger: Ledger
    commitments: Commitments
    owed_reports: OwedReports
    nodes: Nodes
    audit: Audit
    now: ClusterClock  # the time of all nodes on this database

    @property
    def requested_node(self) -> str:
        """The node that a request is for, where it is for one alone of several; else empty."""
        return "" if self.database.is_sqlite else self.config.node_id

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the times that are shown; None is the system's own."""
        return self.config.node.zone

    def admission(self, settings: Config, guests: Collection[str] = ()) -> Admission:
        """Who may send, by this configuration and by what was allowed since; guests always may.

        Where the configuration names no calling AE title any is let in, whoever was allowed since.
        """
        allowed = frozenset(settings.node.allowed_ae_titles)
        if allowed:
            added = control.all_on(self.database, SwitchName.ALLOWED_AE)
            allowed |= {switch.subject for switch in added}
        return Admission(
            called_ae_titles=frozenset(settings.called_ae_titles),
            calling_ae_titles=allowed,
            networks=tuple(str(network) for network in settings.node.allowed_networks),
            guests=frozenset(guests),
            needs_tls=settings.tls.required,
            certificates={
                title: frozenset(map(mark, names))
                for title, names in settings.tls.ae_titles.items()
            },
            reporters=frozenset(
                (title, place.address(settings.node.ae_title)[3])
                for place in settings.destinations
                for title in place.reporting_ae_titles
            ),
        )


@contextmanager
def opened(config: Config, node_id: str) -> Iterator[Store]:
    """Open storage; the database is made, or brought up to this release, where needed."""
    with closing(Database.for_folder(config.folder, config.storage.database)) as database:
        incoming_of = "" if database.is_sqlite else node_id
        files = Files(config.folder, config.storage.min_free_bytes, node=incoming_of)
        keep_to_ourselves(files.folder)
        now = ClusterClock(database)
        holder = Holder(node_id, now, LEASE_SECONDS)
        if not database.is_current():
            _check_others(config, database, Nodes(database, now))
            _copy_before_migration(config, files, database)
            database.migrate()
        yield Store(
            config=config,
            node_id=node_id,
            database=database,
            files=files,
            archive=Archive(database, files, now, node=node_id),
            queue=Queue(database, holder),
            ledger=Ledger(database, holder),
            commitments=Commitments(database, holder),
            owed_reports=OwedReports(database, files, holder),
            nodes=Nodes(database, now),
            audit=Audit(database, now),
            now=now,
        )


def _check_others(config: Config, database: Database, nodes: Nodes) -> None:
    """Refuse to change the tables under nodes of another release that are at work."""
    if not database.revision():
        return
    others = nodes.others(config.node_id, config.node.lost_seconds)
    if others:
        names = ", ".join(other.id for other in others)
        raise StorageError(
            f"the database is of another release, with which {names} work on it; stop every node, "
            "then start this release on all of them"
        )


def _copy_before_migration(config: Config, files: Files, database: Database) -> None:
    """Back up the rows as the older release left them; a new database has none."""
    revision = database.revision()
    if revision:
        target = config.folder / f"midslice-before-{revision}.zip"
        secret = files.secret(config.storage.secret_file)
        back_up(database, target, time.time(), secret=secret)
