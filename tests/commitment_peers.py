"""Peers of storage commitment on real sockets: an archive that is asked, and a sender that asks."""

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from tests.peers import listening
from tests.ports import HOST

PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
NO_SUCH_INSTANCE = 0x0112


def reference(sop_class_uid: str, instance_uid: str, failure: int | None = None) -> Dataset:
    """An item of a sequence of instances."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, instance_uid
    if failure is not None:
        item.FailureReason = failure
    return item


def information(uid: str, kept: Sequence[Dataset], failed: Sequence[Dataset] = ()) -> Dataset:
    """What a request or a report says."""
    content = Dataset()
    content.TransactionUID = uid
    if kept:
        content.ReferencedSOPSequence = list(kept)
    if failed:
        content.FailedSOPSequence = list(failed)
    return content


@dataclass
class Archive:
    """An archive that commits itself: when, from where and how often it reports, and on what."""

    manner: str = "never"  # same association, before the answer, elsewhere before the answer
    node_port: int = 0
    reports_as: str = "PACS_CMT"
    with_roles: bool = True
    status: int = 0x0000  # of the N-ACTION response
    failures: dict[str, int] = field(default_factory=dict)  # of instances
    requests: list[tuple[str, list[Dataset]]] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)  # of the node, to reports
    found: list[str] = field(default_factory=list)  # what C-FIND names
    queries: list[Dataset] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def asked(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-ACTION, and report as the script says."""
        request = event.action_information
        self.requests.append((str(request.TransactionUID), list(request.ReferencedSOPSequence)))
        if self.manner == "elsewhere before the answer":
            self.report()
        elif self.manner == "before the answer":
            self._report_on(event.assoc, *self._content(self.requests[-1]))
        elif self.manner == "same association":
            thread = threading.Thread(target=self._report_after, args=(event.assoc,))
            self.threads.append(thread)
            thread.start()
        return self.status, None

    def searched(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """Answer a C-FIND at IMAGE level."""
        self.queries.append(event.identifier)
        for uid in self.found:
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            answer.SOPInstanceUID = uid
            yield 0xFF00, answer

    def report(self, number: int = -1, **changed: Any) -> int | None:
        """Report on a request, on an association of its own; the node's answer."""
        entity = AE(self.reports_as)
        entity.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if self.with_roles else []
        association = entity.associate(HOST, self.node_port, ae_title="MIDSLICE", ext_neg=roles)
        assert association.is_established, association.acceptor.primitive
        try:
            content, event_type = self._content(self.requests[number])
            self._report_on(association, changed.pop("content", content), event_type, **changed)
        finally:
            association.release()
        return self.answers[-1]

    def _content(self, request: tuple[str, list[Dataset]]) -> tuple[Dataset, int]:
        uid, items = request
        kept = [it for it in items if it.ReferencedSOPInstanceUID not in self.failures]
        failed = [
            reference(it.ReferencedSOPClassUID, it.ReferencedSOPInstanceUID, self.failures[name])
            for it in items
            if (name := it.ReferencedSOPInstanceUID) in self.failures
        ]
        return information(uid, kept, failed), 2 if failed else 1

    def _report_on(
        self,
        association: Association,
        content: Dataset,
        event_type: int,
        instance: str = PUSH_MODEL_INSTANCE,
    ) -> None:
        # As an acceptor, and as a requestor whose role nobody has confirmed, it reports all the
        # same: the library would look for a context in the role of an SCP.
        for context in association._accepted_cx.values():
            context._as_scp = True
        answer, _ = association.send_n_event_report(
            content, event_type, StorageCommitmentPushModel, instance
        )
        self.answers.append(int(answer.Status) if "Status" in answer else None)

    def _report_after(self, association: Association) -> None:
        threading.Event().wait(0.3)  # the N-ACTION response goes first
        self._report_on(association, *self._content(self.requests[-1]))


@contextmanager
def archive(script: Archive, *, commits: bool = True, finds: bool = True) -> Iterator[int]:
    """Run the SCP of an archive; its port."""
    entity = AE("PACS")
    entity.add_supported_context(Verification)
    if commits:
        entity.add_supported_context(StorageCommitmentPushModel)
    if finds:
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    handlers = [(evt.EVT_N_ACTION, script.asked), (evt.EVT_C_FIND, script.searched)]
    with listening(entity, handlers) as port:
        yield port
    for thread in script.threads:
        thread.join()


@dataclass
class Sender:
    """A scanner that stores and asks for commitment; the reports that it gets."""

    ae_title: str = "CT1"
    reports: list[Dataset] = field(default_factory=list)
    event_types: list[int] = field(default_factory=list)
    calling: list[str] = field(default_factory=list)  # who has reported
    came: threading.Event = field(default_factory=threading.Event)
    status: int = 0x0000  # that it answers reports with

    def reported(self, event: evt.Event) -> tuple[int, None]:
        """Take a report."""
        self.reports.append(event.event_information)
        self.event_types.append(event.event_type)
        self.calling.append(str(event.assoc.requestor.ae_title))
        self.came.set()
        return self.status, None

    def associate(self, port: int, tls: ssl.SSLContext | None = None) -> Association:
        """Open an association to the node for storage and its commitment, perhaps over TLS."""
        entity = AE(self.ae_title)
        entity.dimse_timeout = 10
        entity.add_requested_context(CTImageStorage)
        entity.add_requested_context(StorageCommitmentPushModel)
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self.reported)]
        association = entity.associate(
            HOST,
            port,
            ae_title="MIDSLICE",
            evt_handlers=handlers,
            tls_args=(tls, HOST) if tls is not None else None,
        )
        assert association.is_established
        return association

    @staticmethod
    def ask(association: Association, uid: str, *items: Dataset, action: int = 1) -> int:
        """Ask for commitment; the status of the answer."""
        content = information(uid, items)
        answer, _ = association.send_n_action(
            content, action, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE
        )
        return int(answer.Status)


@contextmanager
def sender_listening(sender: Sender, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run the SCP side of a sender, which takes reports; its port."""
    entity = AE(sender.ae_title)
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    with listening(entity, [(evt.EVT_N_EVENT_REPORT, sender.reported)], tls) as port:
        yield port
