"""A Ray cluster on this machine: a head and further nodes, each a `ray start` of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_port

RAY = Path(sys.executable).parent / "ray"
START_SECONDS = 60.0
GONE_SECONDS = 60.0  # for a node to see that its head is another one
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "10",  # that of the node's own workers, which they are measured beside
}


@dataclass
class RayCluster:
    """The nodes of a cluster; the first one is its head."""

    folder: Path
    address: str  # of the head
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    head: int = 0  # its place among the nodes
    cpus: int = 2  # of each node

    def start_head(self) -> None:
        """Start a head, at the port of the one before where there was one."""
        log = self.folder / f"head-{len(self.nodes)}.log"
        temporary = self.folder / f"r{len(self.nodes)}"
        port = self.address.rpartition(":")[2]
        arguments = ["--head", f"--port={port}", "--include-dashboard=false"]
        self.head = len(self.nodes)
        self._start([*arguments, f"--temp-dir={temporary}"], log, first=True)

    def add_node(self) -> None:
        """Start a further node."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        self._start([f"--address={self.address}"], log, first=False)

    def kill(self, node: int) -> None:
        """Kill all processes of a node at once, as a power cut does."""
        process = self.nodes[node]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def replace_head(self) -> None:
        """Kill the head and start another one; nodes that end with it are started again."""
        others = [node for node in self.nodes if node.poll() is None][1:]
        self.kill(self.head)
        self.start_head()
        for node in others:
            node.wait(GONE_SECONDS)
            self.add_node()

    def close(self) -> None:
        """Kill every node; nothing of it is left."""
        for place in reversed(range(len(self.nodes))):
            self.kill(place)

    def _start(self, arguments: list[str], log: Path, *, first: bool) -> None:
        usual = ["--block", f"--num-cpus={self.cpus}", "--num-gpus=0"]
        usual += ["--object-store-memory=200000000", "--memory=8000000000"]
        usual += ["--disable-usage-stats"] if first else []
        with log.open("wb") as output:
            process = subprocess.Popen(
                [RAY, "start", *usual, *arguments],
                stdout=output,
                stderr=output,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
        self.nodes.append(process)
        give_up = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.1)


def own_address() -> str:
    """The address that Ray takes for this machine, even where it is told 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:  # a machine without a network
            return "127.0.0.1"
        return str(sender.getsockname()[0])


@contextmanager
def ray_cluster(nodes: int = 1, *, start: bool = True) -> Iterator[RayCluster]:
    """A cluster of so many nodes; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = RayCluster(folder, f"{own_address()}:{free_port()}")
    try:
        if start:
            cluster.start_head()
            for _ in range(nodes - 1):
                cluster.add_node()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)
