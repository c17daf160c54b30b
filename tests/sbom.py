"""Writes `sbom.json`, the software bill of materials of the product (CycloneDX, JSON).

`make sbom`. The packages are those that the product needs at run time, in the versions that are
installed beside it, each with its licence; CycloneDX's own tool describes them.
"""

import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.pins import PRODUCT, ROOT, needed

TOOL = "cyclonedx-bom==7.5.0"


def main() -> None:
    """Make the tool an environment of its own, and have it look into this one."""
    with tempfile.TemporaryDirectory(prefix="midslice-sbom-") as name:
        folder = Path(name)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", TOOL], check=True)
        describe = [folder / "bin" / "cyclonedx-py", "environment", "--output-format", "JSON"]
        described = [*describe, "--pyproject", ROOT / "pyproject.toml", sys.executable]
        answer = subprocess.run(described, capture_output=True, check=True)
    document = json.loads(answer.stdout)
    runtime = needed()
    document["components"] = [
        component
        for component in document["components"]
        if canonicalize_name(component["name"]) in runtime
    ]
    kept = {component["bom-ref"] for component in document["components"]}
    kept.add(document["metadata"]["component"]["bom-ref"])
    document["dependencies"] = [
        entry | {"dependsOn": sorted(set(entry.get("dependsOn", ())) & kept)}
        for entry in document["dependencies"]
        if entry["ref"] in kept
    ]
    document["metadata"]["component"]["version"] = version(PRODUCT)
    (ROOT / "sbom.json").write_text(json.dumps(document, indent=1) + "\n")
    sys.stdout.write(f"sbom.json: {PRODUCT} and {len(document['components'])} packages\n")


if __name__ == "__main__":
    main()
