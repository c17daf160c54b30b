"""What scripts and programs read stays as it is: the command line's JSON, its help, and REST."""

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest

from node import health
from tests import phantoms
from tests.golden import filled, golden
from tests.unit.web.site import Site, site

API = "/api/v1"
WIDTH = "80"  # of the terminal that the help is written for
(CONSOLE_SCRIPT,) = entry_points(group="console_scripts", name="midslice")
# Times of the rows are those of the tests' clock; any other is that of the run.
OTHER_TIME = re.compile(r"(?!2023-11-1)20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d)?")
FOLDER = re.compile(r'/[^\s":]*/site\b')  # each copy of the filled one is called so
HEARTBEAT = re.compile(r"(?<=heartbeat was )\d+ s(?= ago)")
COLOUR = re.compile("\x1b\\[[0-9;]*m")
IN_TABLES = (
    (re.compile(r"(under )?\b\d+(\.\d+)? (days|h|min( \d+ s)?|s|ms|[kMGT]?B)\b"), "<span>"),
    (re.compile(r"\b\d\d:\d\d:\d\d( [+-]\d{4})?|20(?!23-11-1)\d\d-\d\d-\d\d \d\d:\d\d"), "<time>"),
    (re.compile(r"\bmidslice_[\w-]{43}"), "<token>"),
    (re.compile(" {2,}"), "  "),  # how wide a column is follows from the others
    (re.compile(" +$"), ""),
)
# What is the machine's, the run's or a library's.
VARIES: dict[str, object] = {
    "seconds": "<seconds>",
    "batch": "<batch>",
    "disk_free_bytes": "<bytes>",
    "disk_total_bytes": "<bytes>",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "site"
    filled.fill(folder, migrated_sqlite)
    return folder


@pytest.fixture
def folder(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the site, in which the commands run."""
    copy = filled.copied(rows, tmp_path / "site")
    with (copy / "config.toml").open("a", encoding="utf-8") as configuration:
        configuration.write('[inference]\ndevice = "cpu"\n')
    monkeypatch.chdir(copy)
    monkeypatch.setattr(health, "DISK_WARNING", 1.0)  # how full this machine's is, is its own
    monkeypatch.setenv("LOGNAME", "<user>")  # who acts, for the audit events
    monkeypatch.setenv("COLUMNS", WIDTH)
    monkeypatch.setenv("TERMINAL_WIDTH", WIDTH)
    return copy


@pytest.fixture
def served(rows: Path, tmp_path: Path) -> Iterator[Site]:
    """The web application on these rows."""
    copy = filled.copied(rows, tmp_path / "site")
    with site(copy, rows / filled.DATABASE) as made:
        yield made


def midslice(*arguments: object) -> dict[str, Any]:
    """Run the console script in this process: its status, standard output and error."""
    out, err = io.StringIO(), io.StringIO()
    given = sys.stdin
    sys.stdin = io.StringIO("correct horse\n")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = _status(CONSOLE_SCRIPT.load(), [str(argument) for argument in arguments])
    finally:
        sys.stdin = given
    text = COLOUR.sub("", out.getvalue())
    with contextlib.suppress(ValueError):
        return {"status": status, "json": json.loads(text)} | _unless_empty(err)
    return {"status": status, "out": text.splitlines()} | _unless_empty(err)


def _unless_empty(err: io.StringIO) -> dict[str, object]:
    return {"err": err.getvalue().splitlines()} if err.getvalue() else {}


def _status(main: Any, arguments: list[str]) -> object:
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


def normal(value: Any, **varies: object) -> Any:
    """Without what is of this machine, this folder or this minute."""

    def text(value: str) -> str:
        value = HEARTBEAT.sub("<seconds>", FOLDER.sub("<folder>", value))
        return OTHER_TIME.sub("<time>", value)

    return golden.rewritten(value, text, VARIES | varies)


def asked(*commands: tuple[object, ...], **varies: object) -> dict[str, Any]:
    """Each command line with what came of it, in order."""
    return {
        " ".join(str(word) for word in command): normal(midslice(*command), **varies)
        for command in commands
    }


def test_what_the_command_line_reads_as_json(folder: Path) -> None:
    commands = [
        ("jobs",),
        *(("jobs", "--state", state) for state in ("held", "running", "lost")),
        ("jobs", "--reason", "TOO_FEW_SLICES"),
        ("jobs", "--destination", "pacs", "--limit", 1, "--offset", 1),
        *(("job", number) for number in range(1, 11)),
        ("series",),
        ("series", "1.2.3.9"),
        ("series", "1.2.3.4.5"),
        ("series", "--patient-id", "P", "--limit", 1),
        ("user", "list"),
        ("token", "list"),
        ("models",),
        ("reindex",),
    ]
    done = asked(*((*command, "--json") for command in commands))
    golden.check_json("command-line/reading.json", done)


def test_what_the_command_line_shows_a_person(folder: Path) -> None:
    path = folder / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("4242", "1"), encoding="utf-8")
    (folder / "var" / "secret").write_bytes(b"a secret of the site, 32 bytes..")
    phantoms.write(folder / "ct" / "a", phantoms.Series(slices=4, localizer=True))
    phantoms.write(folder / "gap", phantoms.Series(slices=8, missing=[3]))
    commands = [
        *(("token", "list"), ("token", "add", "script"), ("user", "list")),
        *(("jobs",), ("jobs", "--state", "lost"), ("jobs", "--sender", "NOBODY")),
        *(("job", number) for number in range(1, 11)),
        *(("series",), ("series", "1.2.3.9"), ("series", "1.2.3.4.5")),
        *(("requeue", 1), ("cancel", 8), ("redeliver", 5), ("reindex",)),
        *(("models",), ("echo",), ("send", "ct", "--to", "pacs"), ("check",), ("top",)),
        *(("process", name, "--model", "linear", "--out", f"{name}-out") for name in ("ct", "gap")),
        ("user", "add", "anna", "--role", "administrator"),
        *(("user", "list"), ("token", "list")),
    ]
    shown = []
    for command in commands:
        told = midslice(*command)
        shown += [f"$ midslice {' '.join(str(word) for word in command)}"]
        shown += [*told.get("out", ()), *told.get("err", ()), f"status {told['status']}", ""]
    golden.check("command-line/tables.txt", "\n".join(tabled(str(normal(line))) for line in shown))


def tabled(line: str) -> str:
    """A line of a table, however wide its columns are and however long ago its times."""
    for varies, fixed in IN_TABLES:
        line = varies.sub(fixed, line)
    return line


def test_what_an_operator_does_at_the_command_line(folder: Path) -> None:
    commands = [
        *(("requeue", number, "--json") for number in (1, 2, 3, 4, 5, 99)),
        *(("cancel", number, "--json") for number in (1, 8, 9, 5, 99)),
        *(("redeliver", number, "--json") for number in (5, 6, 1)),
        ("redeliver", 5, "--to", "nobody", "--json"),
        ("prioritise", 9, 1),
        *(("never", "1.2.3.9", *off) for off in ((), ("--off",))),
        *(("drain", *off) for off in ((), ("--off",))),
        *(("pause", "pacs", *off) for off in ((), ("--off",))),
        *(("allow", "CT9", *off) for off in ((), ("--off",))),
        ("user", "add", "anna", "--role", "administrator"),
        ("user", "add", "otto"),
        ("user", "role", "otto", "operator"),
        ("user", "list", "--json"),
        ("user", "remove", "otto"),
        ("token", "add", "script", "--role", "operator", "--json"),
        ("token", "revoke", 1),
        ("token", "list", "--json"),
        ("jobs", "--json"),
    ]
    done = asked(*commands, token="<token>")
    golden.check_json("command-line/operating.json", done)


def test_wrong_use_is_one_line(folder: Path) -> None:
    commands = [
        *(("jobs", "--limit", 0), ("jobs", "--since", "soon"), ("job", "one"), ("lost",)),
        *(("process", "in"), ("echo", "nobody"), ("user", "add", "x", "--role", "root")),
        ("jobs", "--config", "absent.toml"),
    ]
    done = asked(*commands)
    path = folder / "config.toml"
    text = path.read_text(encoding="utf-8")
    for number, wrong in enumerate(("[[destination]]\nport = 'x'\n", "[nodes]\n", "= 1")):
        path.write_text(text + wrong, encoding="utf-8")
        done[f"wrong configuration {number + 1}"] = normal(midslice("jobs"))
    golden.check_json("command-line/wrong-use.json", done)


def test_the_state_of_the_node_as_json(folder: Path) -> None:
    path = folder / "config.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("4242", "1"), encoding="utf-8")
    phantoms.write(folder / "ct", phantoms.Series(slices=2))
    commands = [("echo",), ("send", "ct", "--to", "pacs"), ("check",)]
    done = asked(*((*command, "--json") for command in commands))
    for finding in done["check --json"]["json"]["findings"]:
        if finding["what"] in ("disk", "time zone"):
            finding["sentence"] = re.sub(r"\d+(\.\d+)?", "<n>", finding["sentence"])
    golden.check_json("command-line/node.json", done)


def test_what_process_says_as_json(folder: Path) -> None:
    (folder / "var" / "secret").write_bytes(b"a secret of the site, 32 bytes..")
    phantoms.write(folder / "ct" / "a", phantoms.Series(slices=4))
    phantoms.write(folder / "ct" / "b", phantoms.Series(slices=4, seed="b", localizer=True))
    phantoms.write(folder / "gap", phantoms.Series(slices=8, missing=[3]))
    commands = [
        ("process", "ct", "--model", "linear", "--out", "out", "--json"),
        ("process", "gap", "--model", "linear", "--out", "held", "--json"),
        ("process", "gap", "--model", "linear", "--out", "out", "--json"),
        ("process", "gap", "--model", "absent", "--out", "none", "--json"),
    ]
    golden.check_json("command-line/process.json", asked(*commands))


def commands_of(help_text: list[str]) -> list[str]:
    """The commands that a help text lists."""
    text = "\n".join(help_text)
    _, _, listed = text.partition("─ Commands ─")
    return re.findall(r"^│ ([a-z-]+) ", listed, re.MULTILINE)


def unframed(line: str) -> str:
    """A line of help without its box and the blanks of its columns."""
    return re.sub("  +", "  ", re.sub("[│╭╮╰╯─]+", "", line)).strip()


def test_the_help_of_every_command(folder: Path) -> None:
    text = []
    for group in ((), ("user",), ("token",)):
        for command in ("", *commands_of(midslice(*group, "--help")["out"])):
            words = [*group, *([command] if command else [])]
            shown = [unframed(line) for line in midslice(*words, "--help")["out"]]
            text += [f"$ midslice {' '.join([*words, '--help'])}", *filter(None, shown), ""]
    golden.check("command-line/help.txt", "\n".join(text))


def test_the_openapi_document(served: Site) -> None:
    document = served.client().get("/api/openapi.json").json()
    golden.check_json("openapi.json", document, sort_keys=True)


def told(served: Site, answer: httpx.Response) -> dict[str, object]:
    """Status, headers that count, and body of an answer."""
    headers = {
        name: answer.headers[name].replace(served.url, "<url>")
        for name in ("link", "x-total-count", "location", "retry-after")
        if name in answer.headers
    }
    is_json = "json" in answer.headers.get("content-type", "")
    body = answer.json() if is_json else answer.text.splitlines()
    text = json.dumps(body).replace(served.url, "<url>")
    return {"status": answer.status_code} | headers | {"body": normal(json.loads(text))}


def test_what_programs_read(served: Site) -> None:
    client = served.administrator()
    paths = [
        *("/jobs", "/jobs?state=held&state=running", "/jobs?limit=2&offset=1", "/jobs?state=lost"),
        *(f"/jobs/{number}" for number in (1, 3, 5, 6, 8, 99)),
        *("/series", "/series?limit=1", "/series/1.2.3.9", "/series/1.2.3.4.5"),
        *("/find?patient_id=P", "/find", "/audit", "/node", "/destinations", "/configuration"),
        *("/selftests", "/senders/allow", "/me", "/users", "/tokens", "/wishes/99"),
    ]
    answers = {f"GET {path}": told(served, client.get(API + path)) for path in paths}
    for path in ("/healthz", "/readyz", "/absent"):
        answers[f"GET {path}"] = told(served, client.get(path))
    golden.check_json("rest/reading.json", answers)


def test_what_operators_programs_do(served: Site) -> None:
    client = served.administrator()
    posts: list[tuple[str, Any]] = [
        *((f"/jobs/{number}/requeue", None) for number in (1, 2, 3, 5, 99)),
        *((f"/jobs/{number}/cancel", None) for number in (1, 8, 9, 5)),
        ("/jobs/9/priority", {"priority": 1}),
        ("/jobs/9/priority", {"priority": 0}),
        ("/jobs/5/redeliver", {"destination": "pacs"}),
        ("/jobs/5/redeliver", {"destination": "moon"}),
        ("/deliveries/2/requeue", None),
        ("/deliveries/2/cancel", None),
        ("/series/1.2.3.9/process-now", None),
        ("/series/1.2.3.9/never", None),
        *((f"/destinations/pacs/{what}", None) for what in ("pause", "resume", "echo", "requeue")),
        ("/drain", None),
        ("/configuration/reload", None),
        ("/selftests", None),
        ("/notifications/test", None),
        ("/senders/allow", {"ae_title": "CT9"}),
        ("/rules/explain", None),
    ]
    answers = {
        f"POST {path} {json.dumps(body)}": told(served, client.post(API + path, json=body))
        for path, body in posts
    }
    for path in ("/jobs", "/audit", "/wishes/1"):
        answers[f"GET {path}"] = told(served, client.get(API + path))
    golden.check_json("rest/operating.json", answers)


def test_the_metrics_that_are_exposed(served: Site) -> None:
    """Names, types, labels; the values only where they count rows."""
    lines = served.administrator().get("/metrics").text.splitlines()
    varies = re.compile(r"(bytes|seconds|timestamp|info|created|python|process)")
    shown = [
        line.rpartition(" ")[0]
        if not line.startswith("#") and varies.search(line.split("{")[0].split(" ")[0])
        else line
        for line in lines
    ]
    golden.check("rest/metrics.txt", "\n".join(shown) + "\n")
