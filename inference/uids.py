"""Derived UIDs: fresh for every input that changes a result, and the same when nothing changes."""

import hashlib
import hmac
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from inference.model import Parameters
from inference.request import Mark, Output

# Rises with every change of the rules that could change a derived series made of the same input.
RULES_VERSION = "5"

# Of what a route asks: objects beside the derived series, and whom it takes: what changes nothing.
BESIDE = frozenset({"presentation_state", "error_map", "accept_children"})
# What only a report of findings depends on: at its default it is no part of an identity, so that
# no other result has new UIDs because of it. With another default the rules have another version.
OF_FINDINGS = frozenset({"max_findings", "report"})

SEPARATOR, ESCAPE = b"\x1f", b"\x10"


@dataclass(frozen=True)
class Identity:
    """All that a derived series depends on; two equal identities are one derived series."""

    sources: Sequence[tuple[str, str]]  # (instance UID, digest of its pixels and place)
    patient_and_study: bytes  # the copied attributes as they are written
    model: str
    version: str
    weights_sha256: str
    parameters: Parameters
    output: Output
    edition: int
    runtime: str = ""  # what of the model changes results beside its version and its weights
    mark: Mark = Mark()


class UidMaker:
    """Makes the UIDs of one derived series with the secret of the site."""

    def __init__(self, secret: bytes, identity: Identity) -> None:
        self._keyed = hmac.new(secret, joined(_fields_of(identity)), hashlib.sha256)

    def series(self, kind: str = "") -> str:
        """The UID of the derived series, or of the series of a further object of that kind."""
        return self._uid("series", *filter(None, [kind]))

    def instance(self, place: str) -> str:
        """The UID of the slice at a place; places are unique in a series."""
        return self._uid("instance", place)

    def _uid(self, *place: str) -> str:
        keyed = self._keyed.copy()
        keyed.update(SEPARATOR + joined(place))
        return as_uid(keyed.digest())


def marked(
    secret: bytes, identity: Identity, given: Mapping[str, Mark], new: Mark
) -> tuple[UidMaker, str, Mark]:
    """The UIDs of a content with its mark: the one that it was given before, else the new one.

    With the UID that its series would have without a mark, by which a content is known again.
    """
    content_uid = UidMaker(secret, identity).series()
    mark = given.get(content_uid, new)
    return UidMaker(secret, replace(identity, mark=mark)), content_uid, mark


def node_uid(secret: bytes, station_name: str) -> str:
    """The UID of the node itself, as Instance Creator."""
    message = joined(["node", station_name])
    return as_uid(hmac.new(secret, message, hashlib.sha256).digest())


def frame_of_series(secret: bytes, study_uid: str, series_uid: str) -> str:
    """The frame of reference of all results of a series whose slices name none."""
    message = joined(["frame of reference", study_uid, series_uid])
    return as_uid(hmac.new(secret, message, hashlib.sha256).digest())


def as_uid(digest: bytes) -> str:
    """A UID of the form of PS3.5 B.2: 2.25. and a UUID as a decimal number."""
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def joined(parts: Iterable[str | bytes]) -> bytes:
    """Fields joined by 0x1F; one inside a field is escaped, so that no two lists are the same."""
    encoded = (part.encode("utf-8") if isinstance(part, str) else part for part in parts)
    return SEPARATOR.join(
        part.replace(ESCAPE, ESCAPE + b"0").replace(SEPARATOR, ESCAPE + b"1") for part in encoded
    )


def _fields_of(identity: Identity) -> list[str | bytes]:
    sources = sorted(identity.sources)
    identity_fields: list[str | bytes] = [RULES_VERSION, str(len(sources))]
    for uid, digest in sources:
        identity_fields += [uid, digest]
    identity_fields += [identity.patient_and_study, identity.model, identity.version]
    identity_fields += [identity.weights_sha256, str(identity.edition), identity.runtime]
    marks = () if identity.mark == Mark() else (identity.mark,)  # a first result has none
    for group in (identity.parameters, identity.output, *marks):
        for field in fields(group):
            value = getattr(group, field.name)
            is_default = field.name in OF_FINDINGS and value == field.default
            if field.name not in BESIDE and not is_default:
                identity_fields += [field.name, repr(value)]
    return identity_fields
