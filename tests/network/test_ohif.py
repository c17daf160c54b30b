"""OHIF, as npm ships it, opens a derived series from the node; the test fetches its files."""

import http.server
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from storage.records import Role
from tests import series
from tests.node_process import NodeProcess, route, running
from tests.peers import storescu

PACKAGE = "@ohif/app@3.13.2"
CHROMIUM = "/usr/bin/chromium"
SOFTWARE_GL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader")
BUSY_SECONDS = 180.0
SLICES, DERIVED = 6, 11
# The token is shown by an extension: OHIF itself knows the log-in of an OpenID provider alone.
CONFIG = """
window.config = {
  routerBasename: null, modes: [], showStudyList: true, showCPUFallbackMessage: false,
  extensions: [{ id: "token", preRegistration({ servicesManager }) {
    servicesManager.services.userAuthenticationService.setServiceImplementation(
      { getAuthorizationHeader: () => (%(proof)s) });
  } }],
  defaultDataSourceName: "node",
  dataSources: [{
    namespace: "@ohif/extension-default.dataSourcesModule.dicomweb", sourceName: "node",
    configuration: {
      name: "node", friendlyName: "Midslice", qidoRoot: "%(root)s", wadoRoot: "%(root)s",
      imageRendering: "wadors", thumbnailRendering: "wadors", enableStudyLazyLoad: true,
      supportsWildcard: true, omitQuotationForMultipartRequest: true,
    },
  }],
};
"""


@pytest.fixture(scope="module")
def ohif(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the viewer."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: apt-get install npm")
    folder = tmp_path_factory.mktemp("ohif")
    subprocess.run([npm, "pack", PACKAGE], cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("*.tgz")
    shutil.unpack_archive(package, folder, filter="data")
    return folder / "package" / "dist"


@contextmanager
def serving(folder: Path, settings: list[str]) -> Iterator[str]:
    """Serve the files of an application with one page; the origin. `settings` holds its script."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/app-config.js":
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript")
                self.end_headers()
                self.wfile.write(settings[-1].encode())
                return
            if not (folder / path.lstrip("/")).is_file():
                self.path = "/index.html"
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.long
def test_a_derived_series_is_shown_and_scrolled(ohif: Path, tmp_path: Path) -> None:
    settings: list[str] = []
    with serving(ohif, settings) as origin:
        node = NodeProcess(tmp_path / "node", route(destinations=()))
        text = (node.folder / "config.toml").read_text()
        named = f'[web]\ndicomweb_origins = ["{origin}"]\n'
        (node.folder / "config.toml").write_text(text.replace("[web]\n", named))
        with running(node):
            assert storescu(node.port, *series.thick(SLICES), options=("-xt",)).code == 0
            node.event("job succeeded", seconds=BUSY_SECONDS)
            proof = json.dumps(node.program_of("viewer", Role.VIEWER))
            root = f"http://127.0.0.1:{node.web_port}/dicom-web"
            settings.append(CONFIG % {"proof": proof, "root": root})
            ((study,),) = node.rows("select study_uid from series")
            derived = node.jobs()[0]["derived_series_uid"]
            look(f"{origin}/viewer?StudyInstanceUIDs={study}&initialSeriesInstanceUID={derived}")


def look(address: str) -> None:
    """Open the series, and go on by some slices."""
    statuses: list[int] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=list(SOFTWARE_GL))
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(BUSY_SECONDS * 1000)
        page.on(
            "response", lambda it: statuses.append(it.status) if "/dicom-web/" in it.url else None
        )
        page.goto(address)
        page.get_by_text("Skip all").click()
        page.get_by_text("Confirm and hide").click()
        page.get_by_text(f"(1/{DERIVED})").wait_for()
        first = picture(page)
        page.mouse.move(700, 450)
        for _ in range(4):
            page.mouse.wheel(0, 120)
        page.get_by_text(f"(5/{DERIVED})").wait_for()
        page.wait_for_timeout(2000)  # the slice is drawn after its number
        fifth = picture(page)
        browser.close()
    assert set(statuses) == {200}
    for shown in (first, fifth):
        assert len(shown.convert("L").getcolors(1 << 16) or ()) > 100
    assert first.tobytes() != fifth.tobytes()


def picture(page: Page) -> Image.Image:
    """What the viewport shows."""
    return Image.open(io.BytesIO(page.locator("canvas").first.screenshot()))
