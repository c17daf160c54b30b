"""`check` and readyz: what is right, what is not, and what a person does about it."""

import os
import socket
import time
from pathlib import Path

import pytest

from node import check, health
from node.config import Config, load
from node.dicom.contexts import DECODER_PACKAGES
from node.health import Finding, Level
from node.store import opened
from storage.database import Database
from storage.records import Role
from storage.site import people
from storage.site.nodes import SERVING, STOPPING, Nodes
from tests import peers

HOST = "127.0.0.1"
NODE = "host/MIDSLICE"


def configured(
    folder: Path, text: str = "", *, node: str = "", storage: str = "", host: str = HOST
) -> Config:
    path = folder / "config.toml"
    path.write_text(
        f'[node]\nport = 0\nhost = "{host}"\n{node}\n[web]\nport = 0\n'
        f"[storage]\nmin_free_gb = 0.0\n{storage}\n{text}"
    )
    return load(path)


def destination(port: int, host: str = HOST) -> str:
    return f'[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "{host}"\nport = {port}\n'


def findings(config: Config) -> dict[str, Finding]:
    return {finding.what: finding for finding in check.run(config)}


def database(folder: Path) -> Database:
    made = Database.for_folder(folder / "var")
    made.migrate()
    return made


def test_everything_that_can_go_wrong_is_looked_at_in_order(tmp_path: Path) -> None:
    text = (
        destination(1) + '[[route]]\nname = "r"\nmodel = "linear"\nfactor = 2\ndestinations = []\n'
    )
    found = list(check.run(configured(tmp_path, text)))
    assert [finding.what for finding in found] == [
        *("configuration", "routes", "port", "web port", "disk", "secret", "database"),
        *("time zone", "decoders", "model linear", "destination pacs"),
    ]


def test_a_check_before_the_first_start_leaves_nothing_behind(tmp_path: Path) -> None:
    found = findings(configured(tmp_path))
    assert "made at the first start" in found["database"].sentence
    assert "made at the first start" in found["secret"].sentence
    assert not (tmp_path / "var").exists()


def test_what_is_not_right_says_what_to_do(tmp_path: Path) -> None:
    for finding in check.run(configured(tmp_path, destination(1))):
        assert bool(finding.action) == (finding.level is not Level.OK), finding


def test_a_node_without_routes_is_warned_about(tmp_path: Path) -> None:
    assert findings(configured(tmp_path))["routes"].level is Level.WARNING


def test_a_destination_that_is_the_node_itself_is_a_fault(tmp_path: Path) -> None:
    port = peers.free_port()
    config = configured(tmp_path, destination(port, "localhost"))
    config = config.model_copy(update={"node": config.node.model_copy(update={"port": port})})
    assert findings(config)["destinations"].level is Level.FAULT
    assert "destinations" not in findings(configured(tmp_path, destination(port)))


def test_a_port_that_is_taken_is_a_fault(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        config = configured(tmp_path)
        web = config.web.model_copy(update={"port": port})
        found = findings(config.model_copy(update={"web": web}))["web port"]
    assert found.level is Level.FAULT
    assert str(port) in found.sentence


def test_a_port_that_the_running_node_uses_is_right(tmp_path: Path) -> None:
    opened = database(tmp_path)
    Nodes(opened, time.time).start(NODE)
    opened.close()
    with socket.create_server((HOST, 0)) as taken:
        config = configured(tmp_path)
        node = config.node.model_copy(update={"port": taken.getsockname()[1]})
        found = findings(config.model_copy(update={"node": node}))["port"]
    assert found.level is Level.OK
    assert "the running node" in found.sentence


def test_an_address_that_is_not_this_machines_is_a_fault(tmp_path: Path) -> None:
    config = configured(tmp_path)
    node = config.node.model_copy(update={"host": "192.0.2.1", "port": 11112})
    assert findings(config.model_copy(update={"node": node}))["port"].level is Level.FAULT


def test_a_disk_below_the_reserve_is_a_fault(tmp_path: Path) -> None:
    config = configured(tmp_path)
    storage = config.storage.model_copy(update={"min_free_gb": 1e9})
    found = findings(config.model_copy(update={"storage": storage}))["disk"]
    assert found.level is Level.FAULT
    assert "A700" in found.sentence


def test_a_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("no folder")
    assert findings(configured(tmp_path))["disk"].level is Level.FAULT


@pytest.mark.parametrize("name", ["", "received", "midslice.db"])
def test_what_others_may_open_is_a_fault_until_the_node_starts(tmp_path: Path, name: str) -> None:
    config = configured(tmp_path)
    with opened(config, "one"):
        assert "permissions" not in findings(config)
    open_one = config.folder / name
    open_one.chmod(0o755)
    found = findings(config)["permissions"]
    assert found.level is Level.FAULT
    assert str(open_one) in found.sentence
    with opened(config, "one"):
        assert "permissions" not in findings(config)


def test_whoever_may_send_is_warned_about(tmp_path: Path) -> None:
    for host, node, level in (
        ("0.0.0.0", "", Level.WARNING),
        ("::", "", Level.WARNING),
        ("0.0.0.0", 'allowed_networks = ["10.0.0.0/8"]', None),
        ("0.0.0.0", 'allowed_ae_titles = ["CT1"]', None),
        (HOST, "", None),
    ):
        config = configured(tmp_path, node=node, host=host)
        found = findings(config).get("peers")
        assert (found.level if found else None) is level, (host, node)


def test_a_secret_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 64)
    config = configured(tmp_path, storage='secret_file = "secret"')
    secret.chmod(0o644)
    assert findings(config)["secret"].level is Level.FAULT
    secret.chmod(0o600)
    assert findings(config)["secret"].level is Level.OK


def test_a_database_of_this_release_is_right(tmp_path: Path) -> None:
    database(tmp_path).close()
    assert findings(configured(tmp_path))["database"].level is Level.OK


def test_pages_need_a_user(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert "users" not in findings(config)  # the first start prints the set-up link
    made = database(tmp_path)
    found = findings(config)["users"]
    assert found.level is Level.WARNING
    assert "set-up link" in found.action and "midslice user add" in found.action
    people.add_user(made, time.time(), "test", "anna", Role.ADMINISTRATOR, "a hash")
    made.close()
    assert "users" not in findings(config)


def test_an_empty_database_is_brought_up_to_date_by_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "midslice.db").touch()
    assert findings(configured(tmp_path))["database"].level is Level.WARNING


def test_a_file_that_is_no_database_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "midslice.db").write_bytes(b"no database" * 1000)
    assert findings(configured(tmp_path))["database"].level is Level.FAULT


def test_a_system_in_utc_is_warned_about_unless_a_zone_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert findings(configured(tmp_path))["time zone"].level is Level.WARNING
    config = configured(tmp_path, node='timezone = "Europe/Berlin"')
    assert findings(config)["time zone"].level is Level.OK
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    assert findings(configured(tmp_path))["time zone"].level is Level.OK
    monkeypatch.undo()
    time.tzset()


def test_a_clock_before_the_configuration_was_written_is_a_fault(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert "clock" not in findings(config)
    tomorrow = time.time() + 86_400
    os.utime(config.path, (tomorrow, tomorrow))
    assert findings(config)["clock"].level is Level.FAULT


def test_every_compressed_transfer_syntax_has_a_decoder(tmp_path: Path) -> None:
    assert findings(configured(tmp_path))["decoders"].level is Level.OK
    assert all(DECODER_PACKAGES.values())


def test_a_model_of_the_site_is_loaded_and_its_weights_are_compared(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    entry = (
        '[[model]]\nname = "ours"\nclass = "inference.models.classical:Linear"\n'
        f'weights = "w.bin"\nweights_sha256 = "{"0" * 64}"\n'
    )
    found = findings(configured(tmp_path, entry))["model ours"]
    assert found.level is Level.FAULT
    assert "SHA-256" in found.sentence


def test_a_model_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    entry = '[[model]]\nname = "ours"\nclass = "absent_module:Net"\n'
    assert findings(configured(tmp_path, entry))["model ours"].level is Level.FAULT


def test_a_destination_is_echoed(tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "pacs") as pacs:
        found = findings(configured(tmp_path, destination(pacs.port)))["destination pacs"]
        assert found.level is Level.OK
    gone = findings(configured(tmp_path, destination(pacs.port)))["destination pacs"]
    assert gone.level is Level.FAULT
    assert gone.sentence.count(HOST) == 1
    assert "allow MIDSLICE there" in gone.action


def test_one_fault_makes_the_check_fail() -> None:
    ok = Finding("port", Level.OK, "free")
    warning = Finding("time zone", Level.WARNING, "UTC", "Set it.")
    fault = Finding("disk", Level.FAULT, "full", "Make room.")
    assert check.as_json([ok, warning])["ok"] is True
    assert check.as_json([ok, fault])["ok"] is False
    assert check.as_json([warning])["findings"] == [
        {"what": "time zone", "level": "warning", "sentence": "UTC", "action": "Set it."}
    ]


def unready(folder: Path, opened: Database, *, now: float, min_free_bytes: int = 0) -> list[str]:
    return health.unready(
        opened,
        NODE,
        folder=folder,
        min_free_bytes=min_free_bytes,
        now=now,
    )


def test_a_node_that_serves_is_ready_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    opened = database(tmp_path)
    assert unready(tmp_path, opened, now=0.0) == ["the node has not started yet"]
    nodes = Nodes(opened, lambda: 1_000.0)
    nodes.start(NODE)
    nodes.beat(NODE, SERVING)
    assert unready(tmp_path, opened, now=1_014.0) == []
    assert unready(tmp_path, opened, now=1_016.0) == ["the node's last heartbeat was 16 s ago"]
    nodes.beat(NODE, STOPPING)
    assert unready(tmp_path, opened, now=1_001.0) == ["the node is stopping"]
    opened.close()


def test_a_node_without_room_is_not_ready(tmp_path: Path) -> None:
    opened = database(tmp_path)
    Nodes(opened, lambda: 1_000.0).start(NODE)
    (reason,) = unready(tmp_path, opened, now=1_000.0, min_free_bytes=10**18)
    assert "below storage.min_free_gb = 1e+09" in reason
    opened.close()


def test_a_database_that_does_not_answer_is_a_reason(tmp_path: Path) -> None:
    broken = Database(f"sqlite:///{tmp_path}/absent/midslice.db")
    (reason,) = unready(tmp_path, broken, now=0.0)
    assert reason.startswith("the database does not answer: ")
    broken.close()
