"""What goes to a node and comes from it: series sent by DCMTK or byte by byte, and results."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests import node_rows
from tests.node_process import NodeProcess, route
from tests.peers import Storescp, storescu
from tests.raw_peer import RawPeer, associate_request, status_of, store_command

PROPOSAL = {  # how storescu offers nothing but one of these
    ImplicitVRLittleEndian: "-xi",
    JPEG2000Lossless: "-xv",
    JPEGLSLossless: "-xt",
    RLELossless: "-xr",
}
NO_ANSWER = -1
MADE_UID = re.compile(rb"2\.25\.\d+")


def send(
    node: NodeProcess, files: Sequence[Path], *, called: str = "MIDSLICE", **peer: str
) -> None:
    """Send files of one transfer syntax in one association; each is answered with Success."""
    syntax = dcmread(files[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
    options = [PROPOSAL[syntax]] if syntax in PROPOSAL else []
    sent = storescu(node.port, *files, called=called, options=options, **peer)
    assert sent.code == 0, sent.output


def send_and_wait(
    node: NodeProcess, files: Sequence[Path], arrivals: int = 1, **peer: str
) -> list[node_rows.JobRow]:
    """Send a series and wait until all is done with it; its jobs."""
    send(node, files, **peer)
    node_rows.wait_until_settled(node, [uid_of(files)], arrivals=arrivals)
    return node_rows.jobs(node, uid_of(files))


def send_as_it_lies(
    node: NodeProcess, files: Sequence[Path], calling: str = "STORESCU"
) -> list[int]:
    """Send the bytes of each file, however broken they are; the statuses of the answers.

    NO_ANSWER is the last where the node aborts the association.
    """
    metas = [read_file_meta_info(path) for path in files]
    kinds = [(str(m.MediaStorageSOPClassUID), (str(m.TransferSyntaxUID),)) for m in metas]
    contexts = tuple(dict.fromkeys(kinds))
    found = []
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(calling=calling, contexts=contexts))
        for path, meta, kind in zip(files, metas, kinds, strict=True):
            uid = padded(str(meta.MediaStorageSOPInstanceUID))
            command = store_command(uid, sop_class=kind[0].encode())
            context_id = 2 * contexts.index(kind) + 1
            try:
                answer = peer.store(command, data_set_of(path), context_id=context_id)
            except (BrokenPipeError, ConnectionResetError):
                return [*found, NO_ANSWER]  # the node has aborted: it takes no such encoding
            found.append(status_of(answer))
        peer.release()
    return found


def uid_of(files: Sequence[Path]) -> str:
    """The Series UID of the first of these files."""
    return str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)


def made_of(archive: Storescp, derived_uid: str | None) -> list[Path]:
    """What the archive holds of a derived series."""
    return [path for path, uid in _series_of(archive) if uid == derived_uid]


def _series_of(archive: Storescp) -> Iterator[tuple[Path, str]]:
    for path in archive.files():
        yield path, str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID)


def named(name: str, **route_of: object) -> str:
    """A route of that name, for a called AE title of the same."""
    text = route(**route_of).replace("ct-slices", name)  # type: ignore[arg-type]
    return text + f'called_ae_title = "{name.upper()}"\n'


def data_set_of(path: Path) -> bytes:
    """What follows the file meta information (PS3.10 7.1)."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def padded(uid: str) -> bytes:
    """A UID of even length (PS3.5 9.1)."""
    return uid.encode() + b"\0" * (len(uid) % 2)


def renamed(path: Path, number: int) -> None:
    """The same file with other UIDs of the same length: another study of another series."""
    tail = f"{number:04d}".encode()
    content = path.read_bytes()
    path.write_bytes(MADE_UID.sub(lambda uid: _with_tail(uid[0], tail), content))


def _with_tail(uid: bytes, tail: bytes) -> bytes:
    return uid[: -len(tail)] + tail if len(uid) > 20 else uid
