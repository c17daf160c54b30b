#!/usr/bin/env bash
# sse-starlette 3.7.0: importing it, without using it, replaces `uvicorn.Server.handle_exit` for the
# whole process, so that a subclass or an embedding program that relies on uvicorn's own method for
# its signals runs other code. Seen with uvicorn 0.54.0: the method's module becomes sse_starlette.sse.
# The script fails when an import leaves uvicorn as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  sse-starlette==3.7.0 uvicorn==0.54.0 starlette==1.10.0
"$folder/venv/bin/python" - <<'PYTHON'
import uvicorn

before = uvicorn.Server.handle_exit
assert before.__module__ == "uvicorn.server", before.__module__
import sse_starlette  # noqa: E402, F401 - the import is what is looked at

after = uvicorn.Server.handle_exit
print(f"before: {before.__module__}.{before.__qualname__}")
print(f"after the import: {after.__module__}.{after.__qualname__}")
if after is before:
    raise SystemExit("changed: the import leaves uvicorn.Server.handle_exit alone")
PYTHON
