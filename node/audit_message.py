"""Audit messages as DICOM writes them: PS3.15 A.5, the schema of A.5.1."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from xml.etree import ElementTree as xml

from storage.records import AuditEvent
from storage.site.audit import FIND, VIEW, VIEW_PICTURES
from storage.site.trail import Rejected, Transfer

DCM, RFC = "DCM", "RFC-3881"

APPLICATION_ACTIVITY = "110100", "Application Activity"
INSTANCES_ACCESSED = "110103", "DICOM Instances Accessed"
INSTANCES_TRANSFERRED = "110104", "DICOM Instances Transferred"
QUERY = "110112", "Query"
SECURITY_ALERT = "110113", "Security Alert"
USER_AUTHENTICATION = "110114", "User Authentication"
START, STOP = ("110120", "Application Start"), ("110121", "Application Stop")
LOGIN, LOGOUT = ("110122", "Login"), ("110123", "Logout")
NODE_AUTHENTICATION = "110126", "Node Authentication"
SOFTWARE_CONFIGURATION = "110131", "Software Configuration"
RESTRICTED_FUNCTION = "110132", "Use of Restricted Function"
USER_ATTRIBUTES = "110137", "User Security Attributes Changed"
APPLICATION = "110150", "Application"
DESTINATION_ROLE, SOURCE_ROLE = ("110152", "Destination Role ID"), ("110153", "Source Role ID")
STUDY_UID, SOP_CLASS_UID = ("110180", "Study Instance UID"), ("110181", "SOP Class UID")
URI = "12", "URI"  # RFC 3881: whatever the node calls what was acted on
PATIENT_NUMBER = "2", "Patient Number"
SERVER_SOURCE = "4"  # Audit Source Type: an application server process
HOST_NAME, IP_ADDRESS = "1", "2"  # Network Access Point Type

CREATE, READ, EXECUTE = "C", "R", "E"


class Outcome(IntEnum):
    """The Event Outcome Indicator."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


# What a person did -> event and type. Anything else is the use of a restricted function.
ACTS = {
    "log in": (USER_AUTHENTICATION, LOGIN),
    "log in refused": (USER_AUTHENTICATION, LOGIN),
    "password refused": (USER_AUTHENTICATION, LOGIN),
    "log out": (USER_AUTHENTICATION, LOGOUT),
    **dict.fromkeys(
        ("user add", "user change", "user remove", "token add", "token revoke"),
        (SECURITY_ALERT, USER_ATTRIBUTES),
    ),
    "ask: reload": (SECURITY_ALERT, SOFTWARE_CONFIGURATION),
}
ACCESSES = (VIEW, VIEW_PICTURES)
REFUSALS = ("log in refused", "password refused")


@dataclass(frozen=True)
class Participant:
    """Somebody, or a program, that takes part."""

    id: str
    is_requestor: bool = False
    role: tuple[str, str] | None = None
    address: str = ""


@dataclass(frozen=True)
class Subject:
    """The object of an act: a study, a patient, a SOP class."""

    type: str  # 1 person, 2 system object
    role: str  # 1 patient, 3 report, 13 security resource, 24 query
    id_type: tuple[str, str]
    id: str
    system: str = DCM
    sop_class_uid: str = ""
    instances: int = 0


@dataclass(frozen=True)
class Message:
    """One act, as a repository hears of it."""

    at: float
    event: tuple[str, str]
    action: str
    participants: tuple[Participant, ...]
    type: tuple[str, str] | None = None
    outcome: Outcome = Outcome.SUCCESS
    subjects: tuple[Subject, ...] = field(default=())


class Messages:
    """Makes the messages of one node, of which `ae_title` is the name that peers know."""

    def __init__(self, ae_title: str, host: str) -> None:
        self._ae_title = ae_title
        self._host = host

    def application(self, at: float, *, starts: bool) -> Message:
        """The node starts, or stops: A.5.3.1."""
        node = Participant(self._ae_title, role=APPLICATION, address=self._host)
        kind = START if starts else STOP
        return Message(at, APPLICATION_ACTIVITY, EXECUTE, (node,), kind)

    def act(self, event: AuditEvent, viewed: Transfer | None = None) -> Message:
        """What a person did, at the pages, by REST or at the command line, and the series seen."""
        person = Participant(event.who, True, address=str(event.detail.get("address", "")))
        node = Participant(self._ae_title, address=self._host)
        what = event.what
        outcome = Outcome.MINOR_FAILURE if what in REFUSALS else Outcome.SUCCESS
        if what == FIND:  # A.5.3.10; with which words is not told
            image = Subject("2", "3", SOP_CLASS_UID, "1.2.840.10008.5.1.4.1.2.2.1")
            participants = (replace(person, role=SOURCE_ROLE), replace(node, role=DESTINATION_ROLE))
            return Message(event.at, QUERY, EXECUTE, participants, subjects=(image,))
        if what in ACCESSES:  # A.5.3.6
            named = (Subject("2", "3", URI, event.which, RFC),)  # its row may be gone
            subjects = _study_and_patient(viewed) if viewed is not None else named
            return Message(event.at, INSTANCES_ACCESSED, READ, (person, node), subjects=subjects)
        kind, type = ACTS.get(what, (SECURITY_ALERT, RESTRICTED_FUNCTION))
        which = f"{what} {event.which}".strip()
        subjects = () if kind is USER_AUTHENTICATION else (Subject("2", "13", URI, which, RFC),)
        return Message(event.at, kind, EXECUTE, (person, node), type, outcome, subjects)

    def rejected(self, rejected: Rejected) -> Message:
        """A peer was turned away: A.5.3.11."""
        peer = Participant(rejected.calling_ae, True, address=rejected.address)
        node = Participant(self._ae_title, address=self._host)
        why = Subject("2", "13", URI, rejected.reason, RFC)
        return Message(
            rejected.at,
            SECURITY_ALERT,
            EXECUTE,
            (peer, node),
            NODE_AUTHENTICATION,
            Outcome.MINOR_FAILURE,
            (why,),
        )

    def received(self, transfer: Transfer) -> Message:
        """A series has arrived: A.5.3.7."""
        peer = Participant(transfer.peer, True, SOURCE_ROLE)
        node = Participant(self._ae_title, False, DESTINATION_ROLE, self._host)
        return self._transferred(transfer, CREATE, (peer, node))

    def sent(self, transfer: Transfer) -> Message:
        """A destination has taken a result: A.5.3.7."""
        node = Participant(self._ae_title, True, SOURCE_ROLE, self._host)
        peer = Participant(transfer.peer, False, DESTINATION_ROLE)
        return self._transferred(transfer, READ, (node, peer))

    def _transferred(
        self, transfer: Transfer, action: str, participants: tuple[Participant, ...]
    ) -> Message:
        subjects = _study_and_patient(transfer)
        return Message(transfer.at, INSTANCES_TRANSFERRED, action, participants, subjects=subjects)

    def xml(self, message: Message) -> bytes:
        """The document of A.5.1, in UTF-8 and in one line: syslog servers escape line ends."""
        root = xml.Element("AuditMessage")
        event = xml.SubElement(
            root,
            "EventIdentification",
            EventActionCode=message.action,
            EventDateTime=datetime.fromtimestamp(message.at, UTC).isoformat(
                timespec="milliseconds"
            ),
            EventOutcomeIndicator=str(int(message.outcome)),
        )
        _coded(event, "EventID", message.event)
        if message.type is not None:
            _coded(event, "EventTypeCode", message.type)
        for participant in message.participants:
            _add_participant(root, participant)
        source = xml.SubElement(root, "AuditSourceIdentification", AuditSourceID=self._ae_title)
        xml.SubElement(source, "AuditSourceTypeCode", {"csd-code": SERVER_SOURCE})
        _add_subjects(root, message.subjects)
        return b'<?xml version="1.0" encoding="UTF-8"?>' + bytes(xml.tostring(root, "utf-8"))


def _study_and_patient(transfer: Transfer) -> tuple[Subject, ...]:
    study = Subject(
        *("2", "3", STUDY_UID, transfer.study_uid),
        sop_class_uid=transfer.sop_class_uid,
        instances=transfer.instances,
    )
    return study, Subject("1", "1", PATIENT_NUMBER, transfer.patient_id or "none", RFC)


def _coded(parent: xml.Element, name: str, code: tuple[str, str], system: str = DCM) -> None:
    value, meaning = code
    coded = {"csd-code": value, "codeSystemName": system, "originalText": meaning}
    xml.SubElement(parent, name, coded)


def _add_participant(root: xml.Element, participant: Participant) -> None:
    attributes = {
        "UserID": participant.id or "unknown",
        "UserIsRequestor": "true" if participant.is_requestor else "false",
    }
    if participant.address:
        is_address = participant.address.replace(".", "").isdigit() or ":" in participant.address
        attributes["NetworkAccessPointID"] = participant.address
        attributes["NetworkAccessPointTypeCode"] = IP_ADDRESS if is_address else HOST_NAME
    element = xml.SubElement(root, "ActiveParticipant", attributes)
    if participant.role is not None:
        _coded(element, "RoleIDCode", participant.role)


def _add_subjects(root: xml.Element, subjects: Iterable[Subject]) -> None:
    for subject in subjects:
        element = xml.SubElement(
            root,
            "ParticipantObjectIdentification",
            ParticipantObjectID=subject.id,
            ParticipantObjectTypeCode=subject.type,
            ParticipantObjectTypeCodeRole=subject.role,
        )
        _coded(element, "ParticipantObjectIDTypeCode", subject.id_type, subject.system)
        if subject.instances:
            description = xml.SubElement(element, "ParticipantObjectDescription")
            counted = {"NumberOfInstances": str(subject.instances)}
            if subject.sop_class_uid:
                counted["UID"] = subject.sop_class_uid
            xml.SubElement(description, "SOPClass", counted)
