"""DIMSE statuses and association rejections: their names, and what the node does on each.

`node/work/deliver.py` carries out what the tables say of an answer that the node gets. What it
answers itself is decided in `node/dicom/handlers.py`.
"""

from enum import StrEnum

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122  # PS3.7 C.5.6; PS3.2 Table N.7-42 prints 0112, which is another
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT_TYPE = 0x0113
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORISED = 0x0124
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900  # the data set does not match the SOP Class or the command
CANNOT_UNDERSTAND = 0xC000
UID_INVALID = 0xC010
UNEXPECTED_ERROR = 0xC211  # pynetdicom's answer where a handler raised

LONGEST_COMMENT = 64  # Error Comment (0000,0902) is LO: PS3.7 C.4.2


class Outcome(StrEnum):
    """The meaning of an answer for whoever sent the instance."""

    STORED = "stored"
    RETRY = "retry"
    STORED_IF_OURS = "stored if ours"
    FEW_RETRIES = "few retries"
    REFUSED = "refused"


# (first, last, outcome): PS3.4 Table B.2-1 and PS3.7 Annex C. The first match wins.
C_STORE_OUTCOMES = (
    (0x0000, 0x0000, Outcome.STORED),
    (0xB000, 0xBFFF, Outcome.STORED),  # stored with a warning: elements coerced or discarded
    (0xA700, 0xA7FF, Outcome.RETRY),  # out of resources
    (0x0110, 0x0110, Outcome.RETRY),  # processing failure
    (0x0213, 0x0213, Outcome.RETRY),  # resource limitation
    (0x0111, 0x0111, Outcome.STORED_IF_OURS),  # duplicate: only if we sent this UID there before
    (0xA900, 0xA9FF, Outcome.FEW_RETRIES),
    (0xC000, 0xCFFF, Outcome.FEW_RETRIES),  # often a database that was down
    (0x0000, 0xFFFF, Outcome.REFUSED),
)


# What a delivery does after an answer; the delays grow from delivery.retry_seconds on.
BEHAVIOUR = {
    Outcome.STORED: "Stored; a warning is kept with the instance.",
    Outcome.RETRY: "Tried again, with growing delays, until the delivery is given up and held.",
    Outcome.STORED_IF_OURS: "Stored where the node has offered this instance there before, else "
    "the delivery is held.",
    Outcome.FEW_RETRIES: "Tried again three times, after 1, 5 and 30 minutes; then held.",
    Outcome.REFUSED: "The delivery is held at once: a person decides.",
}
FEW_RETRY_SECONDS = (60.0, 300.0, 1800.0)


def outcome(status: int) -> Outcome:
    """The consequence of a C-STORE status for the sender."""
    return next(result for first, last, result in C_STORE_OUTCOMES if first <= status <= last)


# Failure Reasons of storage commitment after which asking or sending once more is of use; after
# the others it is not: PS3.3 C.14.1.1.
PASSING_FAILURES = frozenset({0x0110, 0x0112, 0x0131, 0x0213})
AGAIN_SECONDS = (60.0, 600.0, 3600.0)  # then what is missing is sent again, once; then it is held


# (first, last, meaning): PS3.4 B.2.3 for C-STORE, PS3.7 Annex C for all services.
C_STORE_MEANINGS = (
    (0x0000, 0x0000, "success"),
    (0x0105, 0x0105, "no such attribute"),
    (0x0106, 0x0106, "invalid attribute value"),
    (0x0107, 0x0107, "attribute list error"),
    (0x0110, 0x0110, "processing failure"),
    (0x0111, 0x0111, "duplicate SOP Instance"),
    (0x0112, 0x0112, "no such SOP Instance"),
    (0x0113, 0x0113, "no such event type"),
    (0x0114, 0x0114, "no such argument"),
    (0x0115, 0x0115, "invalid argument value"),
    (0x0116, 0x0116, "attribute value out of range"),
    (0x0117, 0x0117, "invalid SOP Instance"),
    (0x0118, 0x0118, "no such SOP Class"),
    (0x0119, 0x0119, "class-instance conflict"),
    (0x0120, 0x0120, "missing attribute"),
    (0x0121, 0x0121, "missing attribute value"),
    (0x0122, 0x0122, "SOP Class not supported"),
    (0x0123, 0x0123, "no such action"),
    (0x0124, 0x0124, "not authorised"),
    (0x0131, 0x0131, "duplicate transaction UID"),
    (0x0210, 0x0210, "duplicate invocation"),
    (0x0211, 0x0211, "unrecognised operation"),
    (0x0212, 0x0212, "mistyped argument"),
    (0x0213, 0x0213, "resource limitation"),
    (0xA700, 0xA7FF, "out of resources"),
    (0xA900, 0xA9FF, "data set does not match SOP Class"),
    (0xB000, 0xB000, "data elements coerced"),
    (0xB006, 0xB006, "elements discarded"),
    (0xB007, 0xB007, "data set does not match SOP Class"),
    (0xC000, 0xCFFF, "cannot understand"),
    (0xFE00, 0xFE00, "cancelled"),
)
UNKNOWN = "not a status of the standard"


def meaning(status: int) -> str:
    """A C-STORE status in the words of the standard."""
    known = (words for first, last, words in C_STORE_MEANINGS if first <= status <= last)
    return next(known, UNKNOWN)


def status_text(status: int) -> str:
    """A status for a person; the number is what the log of the peer has."""
    return f"0x{status:04X} ({meaning(status)})"


PERMANENT, TRANSIENT = 1, 2  # Result
USER, PROVIDER_ACSE, PROVIDER_PRESENTATION = 1, 2, 3  # Source

Rejection = tuple[int, int, int]  # (Result, Source, Reason/Diag.)

REJECT_NO_REASON: Rejection = (PERMANENT, USER, 1)
REJECT_CALLING: Rejection = (PERMANENT, USER, 3)
REJECT_CALLED: Rejection = (PERMANENT, USER, 7)
REJECT_CONGESTION: Rejection = (TRANSIENT, PROVIDER_PRESENTATION, 1)
REJECT_LIMIT: Rejection = (TRANSIENT, PROVIDER_PRESENTATION, 2)

# PS3.8 Table 9-21: (source, reason) -> what an administrator reads; the result decides on retry.
REJECTIONS = {
    (USER, 1): "It gives no reason; often it does not know {calling} or its address.",
    (USER, 2): "It does not support the DICOM application context.",
    (USER, 3): "It does not know the calling AE title {calling}: enter it there.",
    (USER, 7): "It does not answer to the called AE title {called}: correct it here.",
    (PROVIDER_ACSE, 1): "It gives no reason.",
    (PROVIDER_ACSE, 2): "It does not support this version of the protocol.",
    (PROVIDER_PRESENTATION, 1): "It is congested at the moment.",
    (PROVIDER_PRESENTATION, 2): "It already has as many associations as it allows.",
}


def rejection(answer: Rejection, *, calling: str, called: str) -> tuple[Outcome, str]:
    """The consequence of a rejected association, and a sentence for the administrator."""
    result, source, reason = answer
    unknown = f"Its reason is unknown (source {source}, reason {reason})."
    why = REJECTIONS.get((source, reason), unknown).format(calling=calling, called=called)
    kind = "for now" if result == TRANSIENT else "permanently"
    decision = Outcome.RETRY if result == TRANSIENT else Outcome.REFUSED
    return decision, f"{called} rejects the association {kind}. {why}"


# PS3.8 Table 9-26: (source, reason) of an A-ABORT.
ABORTS = {
    (2, 0): "no reason given",
    (2, 1): "unrecognized PDU",
    (2, 2): "unexpected PDU",
    (2, 4): "unrecognized PDU parameter",
    (2, 5): "unexpected PDU parameter",
    (2, 6): "invalid PDU parameter value",
}


def abort_text(source: int, reason: int) -> str:
    """The reason of an A-ABORT; where a service user aborts, the reason means nothing."""
    if source == 0:
        return "by its application, which gives no reason"
    return ABORTS.get((source, reason), f"source {source}, reason {reason}")
