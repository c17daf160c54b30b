"""Mutated PDUs, messages and data sets: no crash, no hang, no growth, no unhandled exception.

FUZZ_COUNT says how many conversations each run has with a Storage SCP and its archive in a process
of their own, half of them on each receive path; FUZZ_SEED makes others. What was answered with
Success is read as a worker reads it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from inference.geometry import verdict
from inference.request import Output
from inference.stacks import is_derived_by_node, read_headers, set_aside, stacks_of
from storage.database import Database
from tests.faults.mutations import Conversation, mutated, valid
from tests.faults.table import Fault
from tests.peers import wait_until
from tests.raw_peer import (
    ASSOCIATE_AC,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    RawPeer,
    command_set,
    pdu,
    status_of,
)

COUNT = int(os.environ.get("FUZZ_COUNT", "500"))
SEED = int(os.environ.get("FUZZ_SEED", "10"))
STORE_RESPONSE = b"\x01\x80"
ROOT = Path(__file__).parents[2]
HUNG_SECONDS = 15.0  # what a peer ends ends at once
VALID_EVERY = 50  # conversations; then a valid one has to be kept
WARM = 150  # conversations, before memory is looked at
MOST_GROWTH_BYTES = 30 << 20


@dataclass(frozen=True)
class Receiving:
    """A Storage SCP in a process of its own, and its folder."""

    port: int
    folder: Path
    process: psutil.Process
    errors: Path
    idle_threads: int  # of it where nobody is connected

    def paths(self) -> dict[str, Path]:
        """The kept instances by UID."""
        database = Database.for_folder(self.folder)
        with database.reading() as db:
            rows = db.execute(text("SELECT instance_uid, path FROM instance")).all()
        database.close()
        return {uid: self.folder / path for uid, path in rows}


@contextmanager
def receiving(folder: Path, way: str) -> Iterator[Receiving]:
    errors = folder / "errors"
    command = [sys.executable, "-m", "tests.faults.storage_scp", str(folder / "var"), way]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        scp = psutil.Process(process.pid)
        yield Receiving(port, folder / "var", scp, errors, scp.num_threads())
        process.stdin.close()
    assert process.returncode == 0, errors.read_text()[-4000:]


def say(port: int, conversation: Conversation) -> list[str]:
    """Say all of it; the UIDs that were answered with Success. TimeoutError where nothing ends.

    Nothing more is to come after it, which the SCP hears from the connection.
    """
    kept = []
    with RawPeer(port) as peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        peer.socket.settimeout(HUNG_SECONDS)
        peer.send(conversation.request)
        # Of what was cut short, the request or a PDU behind it, the SCP waits for the rest.
        if _is_whole(conversation.request) and peer.receive()[0] == ASSOCIATE_AC:
            peer.send(b"".join(conversation.pdus()))
        with contextlib.suppress(OSError):  # the SCP has ended the association
            peer.socket.shutdown(socket.SHUT_WR)
        while (said := peer.receive())[0]:
            values = command_set(said[1][6:]) if said[0] == P_DATA else {}
            if status_of(values) == 0x0000 and values[0x0100] == STORE_RESPONSE:
                kept.append(values[0x1000].decode().strip("\0"))
    return kept


def store(port: int, conversation: Conversation) -> int:
    """Store as a scanner does, which waits for each answer; the status, -1 where it is rejected."""
    *said, release = conversation.pdus()
    with RawPeer(port) as peer:
        if peer.associate(conversation.request)[0] != ASSOCIATE_AC:
            return -1
        peer.send(b"".join(said))
        status = status_of(peer.answer())
        peer.send(release)
        assert peer.receive()[0] == RELEASE_RP
    return status


def _is_whole(request: bytes) -> bool:
    return len(request) >= 6 and len(request) == 6 + int.from_bytes(request[2:6], "big")


@dataclass
class Fuzzed:
    """The conversations of one run with a Storage SCP so far."""

    scp: Receiving
    row: Fault
    acknowledged: set[str] = field(default_factory=set)

    def say(self, number: int) -> None:
        """Have the conversation of this number."""
        self.row.times += 1
        try:
            self.acknowledged.update(say(self.scp.port, mutated(SEED, number)))
        except TimeoutError:
            self.row.hung += 1
            self.scp.process.send_signal(signal.SIGUSR1)
            time.sleep(1.0)  # until it has said where its threads are
            threads = self.scp.errors.read_text()[-6000:]
            pytest.fail(f"conversation {number} of seed {SEED} never ends\n{threads}")

    def store(self, number: int) -> None:
        """Have a valid conversation, which nothing before may have spoiled."""
        began = time.monotonic()
        # On a full machine the places of the last ones are given back a moment later.
        wait_until(
            lambda: store(self.scp.port, valid(number)) == 0x0000,
            what="a valid instance is kept",
            seconds=HUNG_SECONDS,
        )
        self.row.seconds = max(self.row.seconds, time.monotonic() - began)
        self.acknowledged.add(f"1.2.3.4.{number}")

    def check(self, memory_before: int) -> None:
        """Nothing is left of them, and the process has not grown."""
        process, idle = self.scp.process, self.scp.idle_threads
        wait_until(lambda: process.num_threads() <= idle, what="no thread is left")
        assert list((self.scp.folder / "incoming").iterdir()) == []
        assert [c for c in process.net_connections() if c.status == "ESTABLISHED"] == []
        assert process.memory_info().rss - memory_before < MOST_GROWTH_BYTES


@pytest.mark.timeout(120 + COUNT)
@pytest.mark.parametrize("way", ["direct", "library"])
def test_whatever_a_peer_says_the_node_goes_on(
    tmp_path: Path, way: str, fault: Callable[[str], Fault]
) -> None:
    numbers = range(way == "library", COUNT, 2)
    warm = min(WARM, len(numbers) // 2)
    with receiving(tmp_path, way) as scp:
        fuzzed, before = Fuzzed(scp, fault("mutated PDU, message or data set")), 0
        for place, number in enumerate(numbers):
            fuzzed.say(number)
            if place % VALID_EVERY == 0:
                fuzzed.store(COUNT + place)
            if place == warm:
                before = scp.process.memory_info().rss
        fuzzed.check(before)
        paths = scp.paths()
    fuzzed.row.lost = len(fuzzed.acknowledged - paths.keys())
    assert fuzzed.row.lost == 0
    assert "Traceback" not in scp.errors.read_text()
    assert len(fuzzed.acknowledged) > COUNT // 20  # some mutations hurt nobody
    _read([paths[uid] for uid in sorted(fuzzed.acknowledged)])


def _read(paths: list[Path]) -> None:
    """Read what was kept as a worker does, before it decodes any pixel."""
    for path in paths:
        headers = read_headers([path])
        is_derived_by_node(headers[0])
        set_aside(headers)
        for stack in stacks_of(headers):
            assert verdict(stack, Output()) is not None


def test_a_valid_conversation_is_kept(tmp_path: Path) -> None:
    with receiving(tmp_path, "direct") as scp:
        assert store(scp.port, valid(1)) == 0x0000
        only_release = Conversation(b"", [], request=valid(1).request)
        only_release.change_pdus = lambda _: [pdu(RELEASE_RQ, bytes(4))]
        assert say(scp.port, only_release) == []
        assert scp.paths().keys() == {"1.2.3.4.1"}


def test_a_number_is_always_the_same_mutation() -> None:
    again = [mutated(SEED, 3).pdus() for _ in range(2)]
    assert again[0] == again[1]
    assert mutated(SEED, 4).pdus() != again[0]
