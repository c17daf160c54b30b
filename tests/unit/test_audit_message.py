"""Audit messages say what PS3.15 A.5 asks of each kind of act."""

import xml.etree.ElementTree as xml

import pytest
from pydicom.sr.codedict import codes

from node import audit_message
from node.audit_message import Message, Messages
from storage.records import AuditEvent
from storage.site.trail import Transfer

MESSAGES = Messages("MIDSLICE", "node.example.org")
AT = 1_700_000_000.25


def read(message: Message) -> xml.Element:
    text = MESSAGES.xml(message)
    assert b"\n" not in text
    return xml.fromstring(text)


def act(what: str, which: str = "", **detail: object) -> xml.Element:
    return read(MESSAGES.act(AuditEvent(1, AT, "anna", what, which, detail)))


def value(root: xml.Element, path: str, attribute: str = "csd-code") -> str | None:
    element = root.find(path)
    return None if element is None else element.get(attribute)


def test_the_codes_have_the_meanings_of_the_standard() -> None:
    known = {code.value: code.meaning for code in (getattr(codes.DCM, n) for n in codes.DCM.dir())}
    ours = [
        pair
        for pair in vars(audit_message).values()
        if isinstance(pair, tuple) and len(pair) == 2 and str(pair[0]).startswith("1101")
    ]
    assert len(ours) >= 17
    assert [pair for pair in ours if known[pair[0]] != pair[1]] == []


@pytest.mark.parametrize(
    ("what", "event", "type", "outcome"),
    [
        ("log in", "110114", "110122", "0"),
        ("log in refused", "110114", "110122", "4"),
        ("password refused", "110114", "110122", "4"),
        ("log out", "110114", "110123", "0"),
        ("find", "110112", None, "0"),
        ("view", "110103", None, "0"),
        ("view pictures", "110103", None, "0"),
        ("user add", "110113", "110137", "0"),
        ("token revoke", "110113", "110137", "0"),
        ("ask: reload", "110113", "110131", "0"),
        ("requeue", "110113", "110132", "0"),
        ("something of a later release", "110113", "110132", "0"),
    ],
)
def test_each_act_has_its_event(what: str, event: str, type: str | None, outcome: str) -> None:
    root = act(what, "job 5")
    assert value(root, "EventIdentification/EventID") == event
    assert value(root, "EventIdentification/EventTypeCode") == type
    assert value(root, "EventIdentification", "EventOutcomeIndicator") == outcome
    assert value(root, "EventIdentification", "EventDateTime") == "2023-11-14T22:13:20.250+00:00"
    people = [part.attrib for part in root.iter("ActiveParticipant")]
    assert [part["UserID"] for part in people] == ["anna", "MIDSLICE"]
    assert [part["UserIsRequestor"] for part in people] == ["true", "false"]
    assert value(root, "AuditSourceIdentification", "AuditSourceID") == "MIDSLICE"


def test_the_address_of_a_person_and_the_name_of_the_node_are_told_apart() -> None:
    points = [
        (part.get("NetworkAccessPointID"), part.get("NetworkAccessPointTypeCode"))
        for part in act("log in", address="2001:db8::1").iter("ActiveParticipant")
    ]
    assert points == [("2001:db8::1", "2"), ("node.example.org", "1")]


def test_a_transfer_names_study_patient_class_and_count() -> None:
    transfer = Transfer(1, AT, "CT1", "1.2.3", "P<1>", 5, "1.2.840.10008.5.1.4.1.1.2")
    for root, action in (
        (read(MESSAGES.received(transfer)), "C"),
        (read(MESSAGES.sent(transfer)), "R"),
    ):
        assert value(root, "EventIdentification/EventID") == "110104"
        assert value(root, "EventIdentification", "EventActionCode") == action
        study, patient = root.iter("ParticipantObjectIdentification")
        assert (study.get("ParticipantObjectID"), patient.get("ParticipantObjectID")) == (
            "1.2.3",
            "P<1>",
        )
        assert value(study, "ParticipantObjectIDTypeCode") == "110180"
        assert value(study, "ParticipantObjectDescription/SOPClass", "NumberOfInstances") == "5"
        roles = [value(part, "RoleIDCode") for part in root.iter("ActiveParticipant")]
        assert sorted(map(str, roles)) == ["110152", "110153"]


@pytest.mark.parametrize("what", ["view", "view pictures"])
def test_a_view_names_the_study_and_the_patient_where_they_are_known(what: str) -> None:
    event = AuditEvent(1, AT, "anna", what, "1.2.3.4", {})
    viewed = Transfer(1, AT, "anna", "1.2.3", "P<1>", 5, "1.2.840.10008.5.1.4.1.1.2")
    root = read(MESSAGES.act(event, viewed))
    assert value(root, "EventIdentification/EventID") == "110103"
    assert value(root, "EventIdentification", "EventActionCode") == "R"
    study, patient = root.iter("ParticipantObjectIdentification")
    facts = [
        (
            subject.get("ParticipantObjectTypeCode"),
            subject.get("ParticipantObjectTypeCodeRole"),
            value(subject, "ParticipantObjectIDTypeCode"),
            subject.get("ParticipantObjectID"),
        )
        for subject in (study, patient)
    ]
    assert facts == [("2", "3", "110180", "1.2.3"), ("1", "1", "2", "P<1>")]
    seen = study.find("ParticipantObjectDescription/SOPClass")
    assert seen is not None
    assert seen.attrib == {"UID": "1.2.840.10008.5.1.4.1.1.2", "NumberOfInstances": "5"}
    (unknown,) = act(what, "1.2.3.4").iter("ParticipantObjectIdentification")
    assert unknown.get("ParticipantObjectID") == "1.2.3.4"
