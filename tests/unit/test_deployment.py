"""compose.yaml, Dockerfile and midslice.service: valid, and all that they name exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from node.config import load

ROOT = Path(__file__).parents[2]
MIDSLICE = ROOT / ".venv/bin/midslice"
# Points of `systemd-analyze security`, 0 to 100; below 20 it calls a service well protected.
MOST_EXPOSURE = 20
# The secrets are in files of the engine; what a host has to give stands in the file's head.
FROM_HOST = {"DATABASE_URL", "DATABASE_PASSWORD", "ORTHANC_PASSWORD", "TIMEZONE", "TORCH_INDEX"}


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document


def test_compose_is_valid_by_the_specifications_schema() -> None:
    schema = json.loads((ROOT / "tests/data/compose-spec/schema.json").read_text())
    validator = jsonschema_rs.validator_for(schema)
    assert [error.message for error in validator.iter_errors(compose())] == []
    wrong = compose()
    wrong["services"]["node"]["secret"] = []
    assert not validator.is_valid(wrong)


def test_every_variable_of_the_node_is_a_key_of_the_configuration(tmp_path: Path) -> None:
    """The shipped configuration, with what compose.yaml sets, is right."""
    environ = {
        key: str(value) for key, value in compose()["services"]["node"]["environment"].items()
    }
    assert environ.pop("MIDSLICE_STORAGE__DATABASE_FILE") == "/run/secrets/database_url"
    secret = tmp_path / "database_url"
    secret.write_text("postgresql+psycopg://midslice:word@database/midslice")
    environ["MIDSLICE_STORAGE__DATABASE_FILE"] = str(secret)
    environ["MIDSLICE_NODE__TIMEZONE"] = "Etc/UTC"
    config = load(ROOT / "config.toml", environ)
    assert len(config.environment) == len(environ)
    (pacs,) = config.destinations
    assert (pacs.host, pacs.ae_title) == ("orthanc", "ORTHANC")
    assert config.storage.database.endswith("@database/midslice")
    assert config.web.host == "0.0.0.0"


def test_services_meet_by_names_and_ports_that_there_are() -> None:
    services = compose()["services"]
    orthanc = services["orthanc"]["environment"]
    node = services["node"]["environment"]
    assert services["database"]
    assert node["MIDSLICE_DESTINATION__PACS__HOST"] in services
    assert node["MIDSLICE_DESTINATION__PACS__PORT"] == orthanc["ORTHANC__DICOM_PORT"]
    assert node["MIDSLICE_DESTINATION__PACS__AE_TITLE"] == orthanc["ORTHANC__DICOM_AET"]
    config = load(ROOT / "config.toml", {})
    ((title, host, port),) = json.loads(orthanc["ORTHANC__DICOM_MODALITIES"]).values()
    assert (title, port) == (config.node.ae_title, config.node.port)
    assert host in services
    assert f"{port}:{port}" in services["node"]["ports"]
    assert f"127.0.0.1:{config.web.port}:{config.web.port}" in services["node"]["ports"]


def test_volumes_secrets_and_paths_are_defined_and_used() -> None:
    document = compose()
    mounts = [mount for it in document["services"].values() for mount in it["volumes"]]
    sources = {mount.split(":")[0] for mount in mounts}
    assert {it for it in sources if not it.startswith(".")} == set(document["volumes"])
    assert all((ROOT / it).exists() for it in sources if it.startswith("."))
    used = [name for it in document["services"].values() for name in it.get("secrets", ())]
    assert sorted(used) == sorted(document["secrets"])
    for service in document["services"].values():
        paths = [str(it) for it in service["environment"].values() if "/run/secrets/" in str(it)]
        assert [Path(it).name for it in paths] == service.get("secrets", [])


def test_every_variable_of_the_host_is_explained_in_the_head() -> None:
    text = (ROOT / "compose.yaml").read_text()
    head, body = text.split("services:", 1)
    wanted = set(re.findall(r"\$\{([A-Z_]+)", body))
    wanted |= {it["environment"] for it in compose()["secrets"].values()}
    assert wanted == FROM_HOST
    required = wanted - set(re.findall(r"\$\{([A-Z_]+):-", body))
    assert all(f"{name}=" in head for name in required)


def test_every_service_tells_its_health() -> None:
    services = compose()["services"]
    assert all("healthcheck" in it for name, it in services.items() if name != "node")
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n    CMD (\[.*\])$", dockerfile(), re.MULTILINE)
    program, *arguments = json.loads(check)
    assert program == "python"
    compile(arguments[-1], "HEALTHCHECK", "exec")
    (url,) = re.findall(r"HEALTH_URL=(\S+)", dockerfile())
    assert url == f"http://127.0.0.1:{load(ROOT / 'config.toml', {}).web.port}/healthz"


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def test_the_image_is_made_of_files_that_there_are_and_runs_no_root() -> None:
    copied = re.findall(r"^COPY (?:--chown=\S+ )?(?!--from)(.+) \S+$", dockerfile(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"LICENSE", "pyproject.toml", "node", "config.toml"} <= set(names)
    assert all((ROOT / name).exists() for name in names)
    assert re.findall(r"^USER (\w+)$", dockerfile(), re.MULTILINE) == ["midslice"]
    mounts = compose()["services"]["node"]["volumes"]
    (volume,) = re.findall(r"^VOLUME (\S+)$", dockerfile(), re.MULTILINE)
    assert f"midslice:{volume}" in mounts


def unit() -> str:
    return (ROOT / "midslice.service").read_text()


def analyzed(path: Path, *arguments: str) -> str:
    command = shutil.which("systemd-analyze")
    assert command, "systemd-analyze is missing: install systemd"
    finished = subprocess.run([command, *arguments, path], capture_output=True, text=True)
    return f"{finished.stderr}{finished.stdout}"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with the product of this checkout in place of that in /opt."""
    path = tmp_path / "midslice.service"
    path.write_text(unit().replace("/opt/midslice/bin/midslice", str(MIDSLICE)))
    return path


def test_systemd_finds_nothing_wrong_in_the_unit(installed: Path) -> None:
    assert str(installed) not in analyzed(installed, "verify", "--man=no")
    wrong = installed.with_name("wrong.service")
    wrong.write_text(installed.read_text().replace("ProtectHome", "ProtectHoome"))
    assert "Unknown key 'ProtectHoome'" in analyzed(wrong, "verify", "--man=no")


def test_the_unit_is_well_protected(installed: Path) -> None:
    said = analyzed(installed, "security", "--offline=true", "--no-pager")
    level = re.search(r"exposure level for midslice.service: ([\d.]+)", said)
    assert level is not None, said
    assert float(level[1]) * 10 < MOST_EXPOSURE


def test_the_unit_waits_longer_than_the_node_and_starts_with_its_environment(
    tmp_path: Path,
) -> None:
    seconds = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit(), re.MULTILINE)[0])
    grace = int(compose()["services"]["node"]["stop_grace_period"].removesuffix("s"))
    config = load(ROOT / "config.toml", {})
    assert min(seconds, grace) > config.node.shutdown_seconds + 10
    pairs = re.findall(r"^Environment=(\w+)=(\S+)$", unit(), re.MULTILINE)
    path = tmp_path / "config.toml"
    path.write_text("")
    assert load(path, dict(pairs)).folder == Path("/var/lib/midslice")
