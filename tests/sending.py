"""The Storage SCU as a test calls it: what it sends, and what was answered."""

from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread

from node.dicom.scu import Outgoing, PeerAddress, SendResult, Timeouts, send
from tests.ports import HOST
from tests.raw_peer import CT, EXPLICIT

DEMO = Path(__file__).parents[1] / "node/demo/data"
JPEG_LS_FILES = sorted((DEMO / "received").glob("*.dcm"))
QUICK = Timeouts(connect=1.0, associate=0.5, answer=0.5)


def native(folder: Path, count: int = 6, *, prefix: str = "1.2.826.0.1.7") -> list[Outgoing]:
    """Real CT slices, native, each with a UID of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = []
    for index in range(count):
        ds = dcmread(JPEG_LS_FILES[index])
        ds.decompress()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{prefix}.{index}"
        path = folder / f"{index}.dcm"
        ds.save_as(path)
        slices.append(Outgoing(index, str(ds.SOPInstanceUID), CT, EXPLICIT, path))
    return slices


@dataclass
class Answers:
    """What was answered for each instance, in the order of the answers."""

    statuses: list[tuple[int, int | None]] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    stop_after: int = 1000

    def answered(self, outgoing: Outgoing, status: int | None, comment: str) -> None:
        self.statuses.append((outgoing.id, status))
        self.comments.append(comment)

    def stop(self) -> bool:
        return len(self.statuses) >= self.stop_after

    def send(
        self, port: int, files: list[Outgoing], *, ae: str = "SCRIPTED", calling: str = "MIDSLICE"
    ) -> SendResult:
        address = peer(port, ae=ae, calling=calling)
        return send(address, files, answered=self.answered, stop=self.stop, timeouts=QUICK)


def peer(port: int, *, ae: str = "SCRIPTED", calling: str = "MIDSLICE") -> PeerAddress:
    return PeerAddress(ae_title=ae, host=HOST, port=port, calling_ae_title=calling)
