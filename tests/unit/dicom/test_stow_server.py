"""The body of a request to store, cut into pieces of any size."""

import random
from pathlib import Path

import pytest

from node.dicom.stow_server import Malformed, Place, StowBody
from storage.records import Peer, Received
from tests import series

BOUNDARY = b"8f2a"


def body(*files: Path) -> bytes:
    head = b"--8f2a\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + it.read_bytes() + b"\r\n" for it in files) + b"--8f2a--\r\n"


class Kept:
    """Takes whole files, as the archive does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.digests: dict[str, str] = {}
        self.body = StowBody(BOUNDARY, Place(folder, 0, self.keep, Peer("CT1", "MIDSLICE")))

    def keep(self, received: Received, peer: Peer, path: Path, digest: str) -> None:
        self.digests[received.instance_uid] = digest
        path.unlink()


def test_pieces_of_any_size_are_the_same_files(tmp_path: Path) -> None:
    content = body(*series.thick(2))
    whole = Kept(tmp_path / "whole")
    whole.body.feed(content)
    whole.body.finish()
    assert len(whole.digests) == 2
    chance = random.Random(18)
    for number in range(10):
        cut = Kept(tmp_path / str(number))
        # Mostly small ones: a boundary, a header and the meta information come in several.
        at, longest = 0, chance.choice((1, 7, 300, 70_000)) if number else 1
        while at < len(content):
            size = chance.randint(1, longest) if at < 4000 else 70_000 + longest
            cut.body.feed(content[at : at + size])
            at += size
        cut.body.finish()
        assert cut.digests == whole.digests
        assert list(cut.folder.iterdir()) == []


def test_a_body_that_is_cut_off_anywhere_keeps_whole_files_only(tmp_path: Path) -> None:
    content = body(*series.thick(2))
    second = content.rindex(b"--8f2a\r\n")
    ends = {0: 0, 1: 0, 30: 0, 500: 0, second - 1: 0, second + 600: 1, len(content) - 6: 1}
    for number, (end, files) in enumerate(ends.items()):
        cut = Kept(tmp_path / str(number))
        cut.body.feed(content[:end])
        with pytest.raises(Malformed):
            cut.body.finish()
        cut.body.discard()
        assert len(cut.digests) == files
        assert list(cut.folder.iterdir()) == []
