"""One headless Chromium and one site for all tests of the pages; every page is watched."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Dialog, Page, StorageState, sync_playwright

from node.demo.exhibits import EXHIBITS
from tests import chest_findings, phantoms
from tests.browser import site as sites
from tests.browser.site import PASSWORD, PHANTOM, Site
from tests.peers import echoscu

CHROMIUM = "/usr/bin/chromium"
# Nothing of its own may reach out: what is left are the requests of our pages.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# How many times slower than it is the browser computes, to find what holds on fast machines only.
SLOWNESS = float(os.environ.get("BROWSER_SLOWNESS", "1"))
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as player:
        found = player.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The node with something of every kind in it, from the first test on."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for a model of the tests
        yield from _filled(folder)


def _filled(folder: Path) -> Iterator[Site]:
    with sites.site(folder, quiet_seconds=2.0) as made:
        made.send_real(8)
        made.send(sites.with_holes("held"))
        made.send(sites.hostile("hostile"))
        made.send(replace(PHANTOM, seed="tilted", tilt_degrees=15.0), calling="CT_ER")
        assert echoscu(made.node.port, called="NOBODY", calling="STRANGER").code != 0
        made.job_of(phantoms.uid("tilted", "series", 3), state="succeeded")
        for model in ("brain", "haemorrhage"):
            made.send_files(EXHIBITS[model].paths, calling="HEADS")
        made.send_files(chest_findings.write(folder / "chest"), calling="CHESTS")
        made.job_of(phantoms.uid("hostile", "series", 3), state="succeeded")
        yield made


@pytest.fixture(scope="session")
def _states(site: Site, browser: Browser) -> Callable[[str], StorageState]:
    """The cookies of somebody who has logged in; each logs in once."""
    known: dict[str, StorageState] = {}

    def state(name: str) -> StorageState:
        if name not in known:
            context = browser.new_context()
            page = context.new_page()
            log_in(page, site, name)
            known[name] = context.storage_state()
            context.close()
        return known[name]

    return state


@pytest.fixture
def open_page(
    site: Site, browser: Browser, _states: Callable[[str], StorageState]
) -> Iterator[Open]:
    """Opens a page as somebody. Afterwards: no script failed, and no other host was asked."""
    contexts, faults, hosts = [], [], set()

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on("dialog", lambda said: faults.extend(_alerts(said)))
        page.on("request", lambda asked: hosts.add(urlsplit(asked.url).netloc))
        page.on("console", lambda said: faults.extend(_refusals(said.text)))
        if SLOWNESS > 1:
            tools = page.context.new_cdp_session(page)
            tools.send("Emulation.setCPUThrottlingRate", {"rate": SLOWNESS})

    def opened(path: str, name: str = "ada", **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(storage_state=_states(name) if name else None, **options)
        contexts.append(context)
        context.on("page", watch)
        page = context.new_page()
        page.goto(site.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert hosts - {urlsplit(site.url).netloc, ""} == set()


def _alerts(said: Dialog) -> list[str]:
    """No page of ours says anything in a window of the browser but "Are you sure?"."""
    return [f"a script ran: {said.message}"] if said.type != "confirm" else []


def _refusals(text: str) -> list[str]:
    """What the browser says where a page breaks its own security policy."""
    return [text] if "Content Security Policy" in text or "Content-Security" in text else []


def log_in(page: Page, site: Site, name: str, password: str = PASSWORD) -> None:
    page.goto(f"{site.url}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_load_state()


AXE = Path(__file__).with_name("axe.min.js")


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility checker as text."""
    return AXE.read_text("utf-8")
