"""`midslice tls init`: certificates with which a node and a peer reach each other."""

import json
import ssl
import stat
from pathlib import Path

import pytest

from node.cli import run
from node.dicom.tls import TlsFiles, client_context, server_context


def test_what_it_makes_fits_and_only_its_owner_reads_the_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tls"
    assert run(["tls", "init", str(folder), "--host", "node.example", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["hosts"] == ["node.example"]
    assert document["files"] == ["ca.key", "ca.pem", "node.key", "node.pem", "peer.key", "peer.pem"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert set(modes.values()) == {0o600}
    for side in ("node", "peer"):
        files = TlsFiles(folder / f"{side}.pem", folder / f"{side}.key", folder / "ca.pem")
        server_context(files, verifies=True)
        assert client_context(files).verify_mode is ssl.CERT_REQUIRED


def test_it_prints_the_table_to_paste_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tls"
    assert run(["tls", "init", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f'certificate = "{folder}/node.pem"' in printed
    assert "its own certificate authority" in " ".join(printed.split())
    assert run(["tls", "init", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
