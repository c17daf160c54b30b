"""The log: one form for every line, and no patient attribute in any of them."""

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import log
from storage.errors import NoRoom

PATIENT = "Doe^John"
logger = logging.getLogger("node.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What was logged, with everything that `configure` changes put back afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    formatwarning, raising = warnings.formatwarning, logging.raiseExceptions
    written = io.StringIO()
    log.configure(json=True, stream=written)
    yield written
    root.handlers[:], root.level, sys.excepthook, threading.excepthook = before
    warnings.formatwarning, logging.raiseExceptions = formatwarning, raising
    logging.captureWarnings(capture=False)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def line(stream: io.StringIO) -> dict[str, object]:
    (only,) = lines(stream)
    return only


def test_a_line_is_one_json_object_with_a_constant_event_and_values_in_keys(
    stream: io.StringIO,
) -> None:
    logger.info("series complete", extra={"series_uid": "1.2.3", "instances": 24})
    found = line(stream)
    assert list(found)[:4] == ["event", "time", "level", "logger"]
    assert found["event"] == "series complete"
    assert (found["series_uid"], found["instances"]) == ("1.2.3", 24)
    assert (found["level"], found["logger"]) == ("info", "node.test")


def test_the_time_is_iso_8601_with_an_offset(stream: io.StringIO) -> None:
    from datetime import datetime

    logger.info("node stopped")
    at = datetime.fromisoformat(str(line(stream)["time"]))
    assert at.utcoffset() is not None
    assert abs(at.timestamp() - datetime.now().astimezone().timestamp()) < 60


def test_values_that_json_does_not_know_are_written_as_text(stream: io.StringIO) -> None:
    logger.info("event", extra={"path": Path("/a"), "set": {1}, "raw": b"abc", "two": (1, 2)})
    found = line(stream)
    assert found["path"] == "/a"
    assert found["set"] == [1]
    assert found["raw"] == "3 bytes"
    assert found["two"] == [1, 2]


def test_a_line_break_in_a_value_does_not_break_the_line(stream: io.StringIO) -> None:
    logger.info("association rejected", extra={"calling_ae": 'A\n{"event": "forged"}'})
    assert line(stream)["calling_ae"] == 'A\n{"event": "forged"}'


def test_a_handler_that_raises_with_a_name_logs_type_and_frames_alone(stream: io.StringIO) -> None:
    def handler() -> None:
        try:
            int(PATIENT)
        except ValueError as error:
            raise RuntimeError(f"no {PATIENT}") from error

    try:
        handler()
    except RuntimeError:
        logger.exception("job failed", extra={"job": 3})
    found = line(stream)
    assert PATIENT not in stream.getvalue()
    error = found["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["cause"]) == ("RuntimeError", "ValueError")
    assert error["frames"][-1].startswith("tests/unit/test_log.py:")
    assert error["frames"][-1].endswith(" handler")
    assert "message" not in error


def test_the_message_of_an_exception_of_ours_is_logged(stream: io.StringIO) -> None:
    try:
        raise NoRoom("3.2 GB are free; storage.min_free_gb asks for 5")
    except NoRoom:
        logger.exception("instance not kept")
    error = line(stream)["error"]
    assert isinstance(error, dict)
    assert error["type"] == "storage.errors.NoRoom"
    assert error["message"] == "3.2 GB are free; storage.min_free_gb asks for 5"


def test_an_exception_in_a_value_is_not_written_out_either(stream: io.StringIO) -> None:
    logger.warning("instance refused", extra={"why": ValueError(PATIENT)})
    assert PATIENT not in stream.getvalue()
    assert line(stream)["why"] == {"type": "ValueError", "frames": []}


def test_an_exception_that_nothing_catches_in_a_thread_is_logged_without_its_text(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ValueError(PATIENT)

    thread = threading.Thread(target=fails, name="sweep")
    thread.start()
    thread.join()
    found = line(stream)
    assert (found["event"], found["in_thread"]) == ("unhandled exception", "sweep")
    assert PATIENT not in stream.getvalue() + "".join(capfd.readouterr())


def test_an_exception_that_ends_the_process_is_logged_without_its_text() -> None:
    code = f"from node import log; log.configure(json=True)\nraise ValueError({PATIENT!r})\n"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["event"] == "unhandled exception"
    assert PATIENT not in ended.stdout + ended.stderr


def test_lines_of_pynetdicom_and_alembic_come_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("pynetdicom.acse").error("Association Rejected")
    logging.getLogger("alembic.runtime.migration").warning("No upgrade %s -> %s", "a", "b")
    first, second = lines(stream)
    assert (first["event"], first["text"]) == ("library message", "Association Rejected")
    assert (first["logger"], first["level"]) == ("pynetdicom.acse", "error")
    assert second["text"] == "No upgrade a -> b"


def test_uvicorn_writes_through_the_same_handler_and_only_once(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler(stream))
    log.configure(json=True, stream=stream)
    logging.getLogger("uvicorn.error").warning("Shutting down")
    assert line(stream)["text"] == "Shutting down"


def test_what_libraries_say_below_a_warning_is_not_logged(stream: io.StringIO) -> None:
    logging.getLogger("pynetdicom.acse").info("Accepting Association")
    logging.getLogger("pydicom").info("reading")
    logging.getLogger("uvicorn.access").info("GET /healthz")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    logging.getLogger("apscheduler.scheduler").warning("skipped")
    assert lines(stream) == []


def test_the_text_of_an_exception_that_a_library_logs_as_its_message_is_dropped(
    stream: io.StringIO,
) -> None:
    try:
        raise ValueError(PATIENT)
    except ValueError as error:
        logging.getLogger("pynetdicom.events").exception(error)
        logging.getLogger("pynetdicom.events").error(error)  # noqa: TRY400 - what it does
    assert PATIENT not in stream.getvalue()
    assert len(lines(stream)) == 2


def test_text_and_warnings_of_libraries_that_read_data_sets_are_dropped(
    stream: io.StringIO,
) -> None:
    logging.getLogger("pydicom").warning("Invalid value for VR PN: '%s'", PATIENT)
    logging.getLogger("a_site_model").warning("seen %s", PATIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn(f"Invalid value for VR PN: {PATIENT}", UserWarning, stacklevel=1)
    assert PATIENT not in stream.getvalue()
    found = lines(stream)
    assert [each["logger"] for each in found] == ["pydicom", "a_site_model", "py.warnings"]
    assert all("where" in each for each in found)


def test_a_message_that_cannot_be_formatted_does_not_print_its_values(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    logger.info("%d instances", PATIENT)
    assert PATIENT not in stream.getvalue() + "".join(capfd.readouterr())


def test_on_a_terminal_a_line_is_readable_and_an_exception_stands_below_it(
    stream: io.StringIO,
) -> None:
    log.configure(json=False, stream=stream)
    try:
        raise NoRoom("the disk is full")
    except NoRoom:
        logger.exception("instance not kept", extra={"job": 3})
    text = stream.getvalue()
    assert not text.startswith("{")
    assert "instance not kept" in text
    assert text.rstrip().endswith("storage.errors.NoRoom: the disk is full")


def test_a_stream_that_is_no_terminal_gets_json(stream: io.StringIO) -> None:
    log.configure(stream=stream)
    logger.info("node stopped")
    assert line(stream)["event"] == "node stopped"


def test_a_library_that_repeats_itself_is_cut_short_and_says_by_how_much(
    stream: io.StringIO,
) -> None:
    """A peer that sends rubbish makes pynetdicom write six lines each time."""

    def rubbish(at: float) -> None:
        record = logging.LogRecord("pynetdicom.dul", 40, "dul.py", 295, "Unknown PDU", (), None)
        record.created = at
        logging.getLogger().handle(record)

    for number in range(100):
        rubbish(1000.0 + number * 0.1)
        logger.warning("association rejected")
    rubbish(1100.0)
    rubbish(900.0)  # the clock was set back
    ours = [it for it in lines(stream) if it["event"] == "association rejected"]
    theirs = [it for it in lines(stream) if it["event"] == "library message"]
    assert (len(ours), len(theirs)) == (100, log.MOST_REPEATED + 2)
    assert [it.get("left_out") for it in theirs[-2:]] == [100 - log.MOST_REPEATED, None]
