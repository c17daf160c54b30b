"""The wheel holds everything that the product needs, and works away from the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference import release
from node.demo.exhibits import EXHIBITS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own; its dependencies are this environment's."""
    work = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-build-isolation", "--no-index"]
    source = work / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    subprocess.run([*pip, "wheel", *alone, "--wheel-dir", work, source], check=True)
    (wheel,) = work.glob("midslice-*.whl")
    subprocess.run([*pip, "install", *alone, "--target", work / "site", wheel], check=True)
    return work / "site"


def midslice(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys, node; from node.cli import main; "
        f"assert node.__file__.startswith({str(installed)!r}), node.__file__; "
        "sys.argv[0] = 'midslice'; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_holds_weights_migrations_pages_and_the_demonstration_series(installed: Path) -> None:
    assert (installed / "inference" / "models" / "midslice.safetensors").stat().st_size > 100_000
    assert list((installed / "storage" / "migrations" / "versions").glob("0001*.py"))
    assert (installed / "inference" / "training" / "evaluation.html").exists()
    assert (installed / "inference" / "training" / "targets.json").exists()
    assert (installed / "node" / "demo" / "report.html").exists()
    assert (installed / "node" / "web" / "templates" / "base.html").exists()
    for name in ("htmx.min.js", "idiomorph-ext.min.js", "LICENSES.txt", "site.css", "page.js"):
        assert (installed / "node" / "web" / "static" / name).exists()
    assert len(list((installed / "node" / "demo" / "data" / "received").glob("*.dcm"))) == 24
    assert (installed / "node" / "demo" / "data" / "LICENSE.md").exists()
    for page in ("demo.html", "objects.html"):
        assert (installed / "node" / "demo" / page).exists()
    for exhibit in EXHIBITS.values():
        shipped = installed / exhibit.folder.relative_to(ROOT)
        paths = [path.relative_to(ROOT) for path in exhibit.paths]
        assert [path for path in paths if not (installed / path).exists()] == []
        assert (shipped / "LICENSE.md").exists()
        assert (installed / exhibit.card).exists()


def test_check_finds_models_decoders_and_a_working_database(
    installed: Path, tmp_path: Path
) -> None:
    routes = [
        f'[[route]]\nname = "{model}"\nmodel = "{model}"\nfactor = 2\ndestinations = []\n'
        for model in ("midslice", "linear")
    ]
    text = "[node]\nport = 0\n[web]\nport = 0\n" + "".join(routes)
    (tmp_path / "config.toml").write_text(text)
    done = midslice(installed, tmp_path, "check", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    assert {"model midslice", "model linear"} <= {entry["what"] for entry in found}
    assert all(entry["level"] != "fault" for entry in found)


def test_it_names_the_build_of_its_source_and_writes_a_first_configuration(
    installed: Path, tmp_path: Path
) -> None:
    said = midslice(installed, tmp_path, "--version")
    build = release.digest(installed.parent / "source")
    assert said.stdout == f"midslice {release.RELEASE}, build {build}\n"
    assert midslice(installed, tmp_path, "init").returncode == 0
    assert 'ae_title = "MIDSLICE"' in (tmp_path / "config.toml").read_text()
