"""Sections 3 and 4 of the statement: application entities, and the services that they give."""

from pydicom.uid import UID

from node.config import Config
from node.conformance.markdown import bullets, listed, table
from node.dicom import contexts, status
from node.dicom.scp import ScpSettings
from node.dicom.scu import TIMEOUTS
from node.dicom.status import Outcome

RESULTS = {status.PERMANENT: "rejected permanent", status.TRANSIENT: "rejected transient"}
SOURCES = {
    status.USER: "service user",
    status.PROVIDER_ACSE: "service provider (ACSE)",
    status.PROVIDER_PRESENTATION: "service provider (presentation)",
}
# What the node itself answers to an association that it does not take.
REJECTED = (
    (status.REJECT_CALLED, "The called AE title is none of the node's."),
    (status.REJECT_CALLING, "The calling AE title is not allowed."),
    (status.REJECT_NO_REASON, "The address lies in no allowed network."),
    (status.REJECT_LIMIT, "As many associations are open as are configured."),
    (status.REJECT_CONGESTION, "Too many connections wait, or the node is stopping."),
)
# What the node answers to a C-STORE request, and what it means (PS3.4 Table B.2-1, PS3.7 C).
ANSWERS = (
    (
        status.SUCCESS,
        "Success",
        "The instance is on disk, its file and folder fsynced, and its row committed. Also for "
        "an instance that was kept before: the same bytes are not stored again, other bytes are "
        "kept beside the first as a further version.",
    ),
    (
        status.OUT_OF_RESOURCES,
        "Refused: Out of Resources",
        "The disk is below its reserve or full, or the database could not take the row in time. "
        "Nothing was kept; send again later. C-ECHO goes on.",
    ),
    (
        status.DOES_NOT_MATCH,
        "Error: Data Set does not match SOP Class",
        "SOP Class or SOP Instance UID of command and data set differ; the Offending Element says "
        "which.",
    ),
    (
        status.CANNOT_UNDERSTAND,
        "Error: Cannot understand",
        "The data set cannot be read up to the Series Instance UID.",
    ),
    (
        status.UID_INVALID,
        "Error: Cannot understand",
        "A UID is empty, absent, longer than 64 characters or holds others than 0-9 and dot.",
    ),
    (
        status.SOP_CLASS_NOT_SUPPORTED,
        "Refused: SOP Class not supported",
        "The SOP Class was not negotiated on this presentation context.",
    ),
    (
        status.UNEXPECTED_ERROR,
        "Error: Cannot understand",
        "The node failed in a way that it did not foresee; nothing was acknowledged.",
    ),
)
MEANINGS = {
    Outcome.STORED: "Stored; a warning is kept with the instance.",
    Outcome.RETRY: "Tried again, with growing delays, until the delivery is given up and held.",
    Outcome.STORED_IF_OURS: "Stored where the node has offered this instance there before, else "
    "the delivery is held.",
    Outcome.FEW_RETRIES: "Tried again three times, after 1, 5 and 30 minutes; then held.",
    Outcome.REFUSED: "The delivery is held at once: a person decides.",
}


def application_entities(config: Config) -> list[str]:
    """Who the node is on the network, and whom it lets in."""
    return [
        "## 3 Application Entities",
        "### 3.1 RECEIVE-AE (SCP) and SEND-AE (SCU)",
        table(("property", "value"), [*_titles(config), *_limits(config)]),
        "### 3.2 Association rejection",
        *_rejections(),
        "### 3.3 Presentation contexts accepted",
        *_accepted(),
        "### 3.4 Presentation contexts proposed",
        _proposed(),
    ]


def _titles(config: Config) -> list[tuple[str, object]]:
    node = config.node
    return [
        ("AE titles answered (called)", listed(config.called_ae_titles, empty="none")),
        ("AE title used (calling)", f"`{node.ae_title}`, or that of the destination"),
        ("port", node.port or "any free one, reported in the log"),
        ("calling AE titles allowed", listed(node.allowed_ae_titles, empty="any")),
        ("networks allowed", listed(node.allowed_networks, empty="any")),
    ]


def _limits(config: Config) -> list[tuple[str, object]]:
    node = config.node
    settings = ScpSettings(node.ae_title, node.host, node.port)
    return [
        ("associations accepted at once", node.max_associations),
        ("associations initiated at once", "1 a destination"),
        ("maximum PDU received", f"{contexts.MAX_PDU_BYTES} bytes"),
        ("asynchronous operations", "none (1 invoked, 1 performed)"),
        ("Implementation Class UID", f"`{contexts.IMPLEMENTATION_CLASS_UID}`"),
        ("Implementation Version Name", f"`{contexts.IMPLEMENTATION_VERSION_NAME}`"),
        ("application context", "`1.2.840.10008.3.1.1.1`"),
        ("extended negotiation", "none accepted, none proposed"),
        ("user identity negotiation", "ignored"),
        ("from connection to A-ASSOCIATE-RQ", f"{settings.request_seconds:g} s"),
        ("one PDU, first to last byte", f"{settings.pdu_seconds:g} s"),
        ("idle association accepted", f"{node.idle_seconds:g} s, then aborted"),
        (
            "association initiated",
            f"connection {TIMEOUTS.connect:g} s, association {TIMEOUTS.associate:g} s, "
            f"answer {TIMEOUTS.answer:g} s and more for large instances",
        ),
    ]


def _rejections() -> list[str]:
    rows = [
        (RESULTS[result], SOURCES[source], reason, when)
        for (result, source, reason), when in REJECTED
    ]
    return [
        "Each rejection is logged with its reason and kept for the administrator.",
        table(("result", "source", "reason", "when"), rows),
    ]


def _accepted() -> list[str]:
    syntaxes = [
        (order, UID(syntax).name, f"`{syntax}`")
        for order, syntax in enumerate(contexts.TRANSFER_SYNTAXES, start=1)
    ]
    classes = [(UID(one).name, f"`{one}`") for one in contexts.STORAGE_SOP_CLASSES]
    return [
        "For Verification: " + _syntaxes(contexts.UNCOMPRESSED) + ".",
        "For each Storage SOP Class of the following list: the first of these transfer syntaxes, "
        "in this order, that the peer proposes. Lossy ones are taken only where the peer proposes "
        "nothing else; JPIP Referenced and SMPTE never.",
        table(("order", "transfer syntax", "UID"), syntaxes),
        table(("Storage SOP Class", "UID"), classes),
    ]


def _proposed() -> str:
    both = _syntaxes(contexts.UNCOMPRESSED)
    return (
        f"Verification with {both}. Storage: only the SOP Classes of what is sent, with a context "
        f"of its own for each of {both}, and for the transfer syntax of the file. A peer that "
        "takes Implicit VR only gets the same data set re-encoded, its pixels unchanged."
    )


def services() -> list[str]:
    """What is answered, and what is done with answers."""
    return [
        "## 4 Services",
        "### 4.1 Verification",
        "SCP and SCU; the SCP answers 0000 also where C-STORE is refused.",
        "### 4.2 Storage SCP",
        bullets(
            [
                "Level 2 (full): every attribute is kept, private ones too. Nothing is coerced.",
                "The data set is kept as it was sent, in the transfer syntax of its context.",
                "Success is answered after the file is fsynced, renamed into the archive and its "
                "row committed; never before.",
                "An instance that arrives again with the same bytes is not stored again. Other "
                "bytes under the same SOP Instance UID are kept as a further version; which one "
                "is used is decided when the series is processed.",
                "What is no input of a model is kept like everything else and has no job.",
                "Retention: see section 7. UIDs, digests and the record of deliveries stay.",
            ]
        ),
        table(
            ("status", "meaning", "when"),
            [(f"{code:04X}", meaning, when) for code, meaning, when in ANSWERS],
        ),
        "### 4.3 Storage SCU",
        "Each instance keeps its own status; only what is missing is offered again, and inference "
        "is not repeated. A delivery is `sent` when every instance is stored.",
        table(
            ("status", "outcome", "behaviour"),
            [
                (_range(first, last), result, MEANINGS[result])
                for first, last, result in status.C_STORE_OUTCOMES
            ],
        ),
        "Whoever reads of an answer, on the pages or in a sentence, reads what it means:",
        table(
            ("status", "in words"),
            [(_range(first, last), words) for first, last, words in status.C_STORE_MEANINGS],
        ),
        "An aborted or lost association, a time-out and a transient rejection are tried again; a "
        "permanent rejection and an instance without an accepted context hold the delivery.",
        "### 4.4 Storage Commitment",
        "Not offered as SCP: the node is no archive, and no scanner may delete an image on its "
        "word. As SCU not supported by this release: a delivery ends as `sent`; `confirmed` is "
        "kept for a release that asks for proof.",
    ]


def _syntaxes(syntaxes: tuple[UID, ...]) -> str:
    return " and ".join(f"{UID(syntax).name} (`{syntax}`)" for syntax in syntaxes)


def _range(first: int, last: int) -> str:
    if (first, last) == (0x0000, 0xFFFF):
        return "any other"
    return f"{first:04X}" if first == last else f"{first:04X}-{last:04X}"
