"""A database over TLS: what the URL of PostgreSQL says of it reaches the server's client."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import Busy
from tests.certificates import Authority
from tests.ports import HOST, free_port
from tests.postgres import ACCOUNT, postgres


@dataclass(frozen=True)
class SecureServer:
    """A PostgreSQL that takes connections over TCP with TLS alone."""

    port: int
    authority: Authority
    stranger: Authority

    def url(self, authority: Authority, mode: str) -> str:
        query = f"sslmode={mode}&sslrootcert={authority.certificate}"
        return f"postgresql://{ACCOUNT}@{HOST}:{self.port}/midslice?{query}"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the server's account may enter, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="pg-tls-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[SecureServer]:
    authority = Authority(folder / "ca")
    pair, port = authority.sign("db", hosts=(HOST,)), free_port()
    if os.geteuid() == 0:
        shutil.chown(pair.key, ACCOUNT)  # it refuses a key of somebody else's
    options = {
        "listen_addresses": HOST,
        "port": str(port),
        "ssl": "on",
        "ssl_cert_file": str(pair.certificate),
        "ssl_key_file": str(pair.key),
    }
    rules = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n"
    with postgres(options, rules=rules, port=port) as running:
        running.create("midslice")
        yield SecureServer(port, authority, Authority(folder / "stranger", "Other CA"))


def test_the_database_is_reached_over_tls(server: SecureServer, tmp_path: Path) -> None:
    url = server.url(server.authority, "verify-full")
    with closing(Database.for_folder(tmp_path, url)) as database, database.reading() as db:
        query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert db.execute(text(query)).one() == (True, "TLSv1.3")


@pytest.mark.parametrize("password", ["geheim", "wrong", ""])
def test_a_key_with_a_password_opens_with_sslpassword_alone(
    server: SecureServer, folder: Path, password: str
) -> None:
    """The URL, with the password in it, may stand in a file of its own and is shown nowhere."""
    own = server.authority.sign("node", password="geheim")
    own.key.chmod(0o600)
    url = server.url(server.authority, "verify-full")
    url += f"&sslcert={own.certificate}&sslkey={own.key}" + f"&sslpassword={password}" * bool(
        password
    )
    with closing(Database.for_folder(folder, url)) as database:
        if password == "geheim":
            with database.reading() as db:
                assert db.execute(text("SELECT 1")).scalar_one() == 1
            return
        with pytest.raises(Busy) as refused, database.reading():
            pass
    assert password not in str(refused.value) or not password


@pytest.mark.parametrize("how", ["another authority", "without TLS"])
def test_a_server_of_another_authority_and_one_in_clear_are_no_database(
    server: SecureServer, tmp_path: Path, how: str
) -> None:
    other = how == "another authority"
    url = server.url(server.stranger if other else server.authority, "verify-full")
    url = url if other else url.replace("verify-full", "disable")
    with (
        closing(Database.for_folder(tmp_path, url)) as database,
        pytest.raises(Busy),
        database.reading(),
    ):
        pass
