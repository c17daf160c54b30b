"""Certificates of a configuration: what `check`, notices, metrics and pages say of them."""

import datetime as dt
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node import certificates, check, revocation
from node.config import Config, load
from node.health import Finding, Level
from tests.certificates import DAY, Authority, Pair

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


def with_lists(folder: Path, authority: Authority, crl: Path) -> Config:
    config = configured(folder, authority, 100)
    return config.model_copy(update={"tls": config.tls.model_copy(update={"crl": crl})})


@pytest.mark.parametrize(
    ("days", "level", "says"),
    [
        (20, Level.OK, "expires on"),
        (7, Level.WARNING, "in 7 days."),
        (-2, Level.FAULT, "nobody with a certificate of this authority is let in or called."),
    ],
)
def test_check_says_until_when_a_revocation_list_counts(
    tmp_path: Path, authority: Authority, days: float, level: Level, says: str
) -> None:
    """Lists for 30 days: the last quarter begins after 22.5 of them."""
    config = with_lists(tmp_path, authority, authority.revoke(days=days))
    (it,) = [one for one in check.run(config) if one.what == "revocation list"]
    assert it.level is level
    assert it.sentence.startswith("The revocation list of Test CA of peers (")
    assert says in it.sentence + "."
    (of_all,) = [one for one in certificates.all_of(config) if one.is_list]
    assert of_all.stage(time.time()) == {20: "", 7: "7.5", -2: "0"}[int(days)]


def test_check_faults_a_list_that_nobody_can_use_and_an_authority_without_one(
    tmp_path: Path, authority: Authority
) -> None:
    stranger = Authority(tmp_path / "stranger", "Other CA")
    config = with_lists(tmp_path, authority, stranger.revoke())
    faults = [one.sentence for one in check.run(config) if one.level is Level.FAULT]
    missing = f"{config.tls.crl} has no list of Test CA: nobody of peers with its certificate"
    assert any(sentence.startswith(missing) for sentence in faults)
    broken = with_lists(tmp_path, authority, authority.certificate)
    faults = [one.sentence for one in check.run(broken) if one.level is Level.FAULT]
    assert sum("it holds no revocation list in PEM" in sentence for sentence in faults) == 2


def test_check_names_a_wrong_and_a_missing_password(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the port, the pages and the audit repository alike; none is shown."""
    monkeypatch.setenv("NODE_KEY", "geheim")
    pair = authority.sign("locked", password="right")
    own = f'certificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
    file = tmp_path / "config.toml"
    file.write_text(
        f'[tls]\nauthorities = "{authority.certificate}"\n{own}key_password = "env:NODE_KEY"\n'
        f'[web]\n{own}[audit]\n{own}key_password = "file:password"\n'
    )
    (tmp_path / "password").write_text("right")
    faults = [one.sentence for one in findings(load(file)) if one.level is Level.FAULT]
    assert faults == [
        f"{pair.certificate}: the key does not open with the password of key_password "
        "(env:NODE_KEY).",
        f"{pair.certificate}: the key has a password; say in key_password where it stands.",
        f"{tmp_path / 'password'} can be read by others.",
    ]


def test_a_list_of_a_part_of_the_certificates_is_not_read(tmp_path: Path) -> None:
    """It would say of the others that they are not revoked."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])
    made = x509.CertificateRevocationListBuilder(issuer, now, now + DAY)
    delta = made.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    path = tmp_path / "crl.pem"
    path.write_bytes(delta.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(revocation.Unreadable, match="the list of CA is for a part"):
        revocation.lists_of(path)


def test_a_revoked_authority_between_takes_its_peers_with_it(tmp_path: Path) -> None:
    """Each authority of the chain but the last has to be in a list of the one above it."""
    root = Authority(tmp_path / "root", "Root CA")
    between = root.authority("Site CA")
    peer = between.sign("ct1")
    chain = [
        x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
        for path in (peer.certificate, between.certificate, root.certificate)
    ]
    of_root, of_between = root.revoke(), between.revoke()
    lists = (*revocation.lists_of(of_root), *revocation.lists_of(of_between))
    assert revocation.objection(lists, chain, time.time()) == ""
    alone = revocation.objection(lists[1:], chain, time.time())
    assert alone == "there is no revocation list of Root CA"
    root.revoke(Pair(between.certificate, between.certificate))
    later = (*revocation.lists_of(of_root), *lists[1:])
    assert revocation.objection(later, chain, time.time()).startswith("Site CA was revoked on 20")


def test_files_of_a_database_url_are_looked_at_too(tmp_path: Path, authority: Authority) -> None:
    url = f"postgresql://m@db.example/m?sslmode=verify-full&sslrootcert={authority.certificate}"
    file = tmp_path / "config.toml"
    file.write_text(f'[storage]\ndatabase = "{url}"\n')
    (ca,) = certificates.all_of(load(file))
    assert ca.role == "the database (sslrootcert)"
