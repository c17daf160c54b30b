"""Versions of an instance: one UID, several files (derived-objects 4.1)."""

from collections.abc import Callable, Sequence

from inference.dataset import Header, newest
from inference.errors import Reason, Unprocessable
from inference.intensity import PixelReader

UNREADABLE = frozenset({Reason.PIXEL_DATA_ERROR, Reason.NO_DECODER})


def digests(
    headers: Sequence[Header], pixels: PixelReader, *, progress: Callable[[int], None]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The digest of each instance's newest version, by UID, and notes about older versions.

    Versions with the same pixels, geometry and rescale are revisions of the header: the newest
    counts. Anything else under one UID is a conflict that a person decides.
    """
    found: dict[str, str] = {}
    notes: list[str] = []
    versions: dict[str, list[Header]] = {}
    for header in headers:
        versions.setdefault(header.uid, []).append(header)
    for done, header in enumerate(newest(headers), start=1):
        found[header.uid] = pixels.digest(header)
        older = [version for version in versions[header.uid] if version is not header]
        notes += [_compared(version, found[header.uid], pixels) for version in older]
        progress(done)
    return found, tuple(sorted(set(notes)))


def _compared(older: Header, digest: str, pixels: PixelReader) -> str:
    try:
        same = pixels.digest(older) == digest
    except Unprocessable as error:
        if error.reason not in UNREADABLE:
            raise _conflict(older) from error
        return "an older version of an instance could not be read; the newest was used"
    if not same:
        raise _conflict(older)
    return "several versions of an instance differ in the header alone; the newest was used"


def _conflict(header: Header) -> Unprocessable:
    number = header.text("InstanceNumber") or "?"
    sentence = (
        f"Image {number} was received twice under one UID with different pixels or position; "
        "find out which one is right and send the whole series again."
    )
    return Unprocessable(Reason.CONFLICTING_INSTANCES, sentence)
