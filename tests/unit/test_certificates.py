"""Certificates of a configuration: what `check`, notices, metrics and pages say of them."""

import time
from pathlib import Path

import pytest

from node import certificates, check
from node.config import Config, load
from node.health import Finding, Level
from tests.certificates import DAY, Authority

DAY_SECONDS = DAY.total_seconds()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def configured(folder: Path, authority: Authority, days: float) -> Config:
    pair = authority.sign(f"node{days:g}", days=days)
    file = folder / "config.toml"
    file.write_text(
        f'[node]\nport = 0\n[web]\nport = 0\n[tls]\nport = 0\ncertificate = "{pair.certificate}"\n'
        f'key = "{pair.key}"\nauthorities = "{authority.certificate}"\n'
    )
    return load(file)


def findings(config: Config) -> list[Finding]:
    """What `check` says of TLS."""
    return [
        one for one in check.run(config) if one.what in ("TLS", "TLS port", "certificate", "key")
    ]


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (100, Level.OK, "in 100 days"),
        (20, Level.WARNING, "in 20 days."),
        (-2, Level.FAULT, "expired on"),
    ],
)
def test_check_says_until_when_each_certificate_is_valid(
    tmp_path: Path, authority: Authority, days: float, level: Level, says: str
) -> None:
    config = configured(tmp_path, authority, days)
    port, own, ca = findings(config)
    assert (port.what, port.level, ca.level) == ("TLS port", Level.OK, Level.OK)
    assert own.level is level
    assert f"node{days:g} of this node" in own.sentence
    assert says in own.sentence


def test_check_faults_a_key_that_others_read_and_files_that_do_not_fit(
    tmp_path: Path, authority: Authority
) -> None:
    config = configured(tmp_path, authority, 100)
    assert config.tls.key is not None
    config.tls.key.chmod(0o640)
    (wide,) = [one for one in findings(config) if one.level is Level.FAULT]
    assert wide.action == f"chmod 600 {config.tls.key}"
    other = authority.sign("other")
    mixed = config.model_copy(update={"tls": config.tls.model_copy(update={"key": other.key})})
    (unfit,) = [one for one in findings(mixed) if one.level is Level.FAULT]
    assert unfit.sentence.endswith("the key is not that of the certificate.")
    gone = config.tls.model_copy(update={"authorities": tmp_path / "none.pem", "key": other.key})
    lacking = findings(config.model_copy(update={"tls": gone}))
    assert any("No such file" in one.sentence for one in lacking if one.level is Level.FAULT)


def test_each_stage_before_the_end_is_reached_once(tmp_path: Path, authority: Authority) -> None:
    own, _ = certificates.all_of(configured(tmp_path, authority, 50))
    at = {left: own.stage(own.expires_at - left * DAY_SECONDS) for left in (31, 30, 8, 7, 1, -1)}
    assert at == {31: "", 30: "30", 8: "30", 7: "7", 1: "7", -1: "0"}


def test_a_replaced_file_is_read_again(tmp_path: Path, authority: Authority) -> None:
    config = configured(tmp_path, authority, 50)
    assert config.tls.certificate is not None
    newer = authority.sign("newer", days=300)
    config.tls.certificate.write_bytes(newer.certificate.read_bytes())
    own, _ = certificates.all_of(config)
    assert own.name == "newer"
    assert own.days_left(time.time()) > 299


def test_files_of_a_database_url_are_looked_at_too(tmp_path: Path, authority: Authority) -> None:
    url = f"postgresql://m@db.example/m?sslmode=verify-full&sslrootcert={authority.certificate}"
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\ndatabase = "{url}"\n')
    (ca,) = certificates.all_of(load(file))
    assert ca.role == "the database (sslrootcert)"
