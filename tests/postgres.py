"""A real PostgreSQL server of our own: a temporary folder, a Unix socket, no port."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

ACCOUNT = "postgres"  # the server refuses to run as root
READY_SECONDS = 30.0
# Tests ask what a commit means to other connections, never what survives a power cut.
FASTER = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "autovacuum=off", "-c", "jit=off")


@dataclass(frozen=True)
class PostgresServer:
    """A server that listens in `folder`; databases are made and dropped by name."""

    folder: Path
    port: int = 5432  # names its socket
    options: tuple[str, ...] = ()
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)  # the last one runs

    def start(self) -> None:
        """Start it and wait until it answers."""
        place = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-h", ""]
        command = [_program("postgres"), *place, *FASTER, *self.options]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                user=_account(),
                env=_environment(),
            )
        self.processes.append(process)
        _wait_until_ready(self, process)

    def kill(self) -> None:
        """End it at once, as a crash does: what was committed is in its files."""
        self.processes[-1].send_signal(signal.SIGQUIT)
        self.processes[-1].wait(READY_SECONDS)

    def kill_all(self) -> None:
        """Kill its processes, without a word of theirs."""
        main = psutil.Process(self.processes[-1].pid)
        main.suspend()  # it starts no further one
        children = main.children(recursive=True)
        for process in (main, *children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes[-1].wait(READY_SECONDS)
        psutil.wait_procs(children, READY_SECONDS)  # until its shared memory is free

    def url(self, database: str) -> str:
        place = f"host={self.folder}&port={self.port}"
        return f"postgresql://{ACCOUNT}@/{database}?{place}"

    def create(self, database: str, template: str = "template0") -> str:
        self._execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        with psycopg.connect(
            host=str(self.folder),
            port=self.port,
            user=ACCOUNT,
            dbname="postgres",
            autocommit=True,
        ) as connection:
            connection.execute(statement.encode())


@contextmanager
def postgres(
    options: Mapping[str, str] | None = None, *, rules: str = "", port: int = 5432
) -> Iterator[PostgresServer]:
    """Start a server, and stop it by its process id.

    `options` are of its configuration, `rules` who may connect in which way (pg_hba.conf).
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has 107 characters
    given = [part for key, value in (options or {}).items() for part in ("-c", f"{key}={value}")]
    server = PostgresServer(folder, port, tuple(given))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, ACCOUNT)
        _run("initdb", "-D", folder / "data", "-U", ACCOUNT, "-A", "trust", "--no-sync")
        if rules:
            (folder / "data/pg_hba.conf").write_text(rules)
        try:
            server.start()
            yield server
        finally:
            if server.processes:
                server.kill()  # at once: nobody needs its files again
    finally:
        shutil.rmtree(folder)


def _wait_until_ready(server: PostgresServer, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    pause = threading.Event()
    while True:
        try:
            psycopg.connect(
                host=str(server.folder), port=server.port, user=ACCOUNT, dbname="postgres"
            ).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (server.folder / "log").read_text(errors="replace")
                raise AssertionError(f"PostgreSQL did not start:\n{log}") from None
            pause.wait(0.05)
        else:
            return


def _run(program: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [_program(program), *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        user=_account(),
        env=_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _account() -> str | None:
    return ACCOUNT if os.geteuid() == 0 else None


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def _program(name: str) -> str:
    """Debian keeps the server's programs out of PATH."""
    debian = sorted(str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (debian[-1] if debian else None)
    assert found is not None, f"{name} is not installed: apt-get install postgresql"
    return found
