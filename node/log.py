"""The log: one JSON object a line, or a readable form on a terminal; never a patient attribute.

Modules log with the standard library; only this one knows structlog, so that the lines of other
libraries come out in the same form. Three things could carry a patient attribute and are shut
here: the text of an exception that is not ours, the text of a library that reads data sets, and a
traceback that is printed where nothing catches an exception.
"""

import logging
import sys
import threading
import traceback
import warnings
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from inference.errors import InferenceError
from node.errors import NodeError
from storage.errors import StorageError

OURS = ("node", "inference", "storage")
OUR_ERRORS = (NodeError, InferenceError, StorageError)
# Libraries whose text is about protocols, addresses and revisions, not about data sets.
TEXT_ALLOWED = ("pynetdicom", "alembic", "apscheduler", "uvicorn", "asyncio")
# pynetdicom tells each step of each association at INFO, uvicorn each request, Alembic its plans.
QUIET = ("pynetdicom", "pydicom", "uvicorn", "uvicorn.access", "PIL", "alembic")
MOST_FRAMES = 30
MOST_REPEATED, REPEATED_SECONDS = 20, 60.0  # lines of one place of a library, in so long
ROOT = Path(__file__).resolve().parent.parent

logger = logging.getLogger(__name__)


def configure(
    json: bool | None = None, *, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send every log line of this process to `stream` (standard output), in one form.

    `json` None: readable where the stream is a terminal. It may be called again.
    """
    stream = stream or sys.stdout
    as_json = not stream.isatty() if json is None else json
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_formatter(as_json=as_json))
    handler.addFilter(_Repetition())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # It warns of each sweep that was skipped because the one before is still at work.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "alembic"):
        # Their own handlers would print each line a second time, in another form.
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(capture=True)
    warnings.formatwarning = _category_only
    # What cannot be formatted is dropped: the report of the standard library repeats the values.
    logging.raiseExceptions = False
    sys.excepthook = _unhandled
    threading.excepthook = lambda args: _unhandled(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


class _Repetition(logging.Filter):
    """Leaves out what a place of a library says over and over: who sends rubbish is no flood.

    Each such peer stands in an event of the node as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}  # since when, how often

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[0] in OURS:
            return True
        place = record.pathname, record.lineno
        begun, count = self._said.get(place, (record.created, 0))
        if not 0.0 <= record.created - begun < REPEATED_SECONDS:
            if count > MOST_REPEATED:
                record.left_out = count - MOST_REPEATED
            begun, count = record.created, 0
        self._said[place] = begun, count + 1
        return count < MOST_REPEATED


def describe(error: BaseException) -> dict[str, object]:
    """An exception as type and frames; its message only where the class is ours."""
    described: dict[str, object] = {"type": _name_of(type(error))}
    if isinstance(error, OUR_ERRORS):
        described["message"] = str(error)
    described["frames"] = frames(error)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        described["cause"] = _name_of(type(cause))
    return described


def frames(error: BaseException) -> list[str]:
    """The frames of an exception, outermost first; no values and no source text."""
    stack = traceback.extract_tb(error.__traceback__)[-MOST_FRAMES:]
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in stack]


def _formatter(*, as_json: bool) -> logging.Formatter:
    renderer: Processor = (
        structlog.processors.JSONRenderer(default=_as_json, ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=True)
    )
    chain: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        _event,
        _exceptions,
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    ]
    if not as_json:
        chain.append(_readable)
    return structlog.stdlib.ProcessorFormatter(processors=[*chain, renderer])


def _event(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """The constant event first, then when, how bad and who; the rest as it was given."""
    record: logging.LogRecord = fields["_record"]
    text = fields.pop("event")
    head: dict[str, Any] = {
        "event": text,
        "time": datetime.fromtimestamp(record.created).astimezone().isoformat("T", "milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    library = record.name.split(".")[0]
    if library not in OURS:
        head |= {"event": "library message", "where": f"{_short(record.pathname)}:{record.lineno}"}
        # `logger.exception(error)` makes the exception's text the message.
        if library in TEXT_ALLOWED and "exc_info" not in fields and isinstance(record.msg, str):
            head["text"] = text
    return {**head, **{key: value for key, value in fields.items() if key not in head}}


def _exceptions(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Every exception, of the record or in a value, without its message unless it is ours."""
    exc_info = fields.pop("exc_info", None)
    fields.pop("stack_info", None)
    for key, value in list(fields.items()):
        if isinstance(value, BaseException):
            fields[key] = describe(value)
    if exc_info and exc_info[1] is not None:
        fields["error"] = describe(exc_info[1])
    return fields


def _readable(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """For a terminal: the time of day, no logger name, an exception as a few lines at the end."""
    fields["timestamp"] = str(fields.pop("time"))[11:19]
    fields.pop("logger")
    error = fields.get("error")
    if isinstance(error, dict):
        lines = [f"  {frame}" for frame in error["frames"]]
        message = f": {error['message']}" if "message" in error else ""
        fields["exception"] = "\n".join([*lines, f"{error['type']}{message}"])
        del fields["error"]
    return fields


def _as_json(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)


def _unhandled(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    where = {"in_thread": threading.current_thread().name}
    logger.critical("unhandled exception", exc_info=(kind, error, trace), extra=where)


def _category_only(message: Any, category: type[Warning], *_: Any, **__: Any) -> str:
    # Warnings of pydicom repeat the value that they warn about.
    return category.__name__


def _name_of(kind: type[BaseException]) -> str:
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _short(filename: str) -> str:
    """A source file without the folder that the product or its libraries lie in."""
    path = Path(filename)
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return str(path.relative_to(ROOT))
    return "/".join(path.parts[-2:])
