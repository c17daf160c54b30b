"""The REST API. So far: is the node alive, and is it ready?"""

import time
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from node import health
from storage.database import Database

BEAT_SECONDS = 15.0  # a parent that has not written its heartbeat for so long does not serve


def build(database: Database, node_id: str, folder: Path, min_free_bytes: int) -> FastAPI:
    """The application of one node; it reads the database and the disk, nothing else."""
    app = FastAPI(
        title="Midslice",
        version=version("midslice"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )

    @app.get("/healthz", summary="The web process is alive")
    def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="The node takes and processes series; else 503 with the reasons")
    def ready() -> JSONResponse:
        reasons = health.unready(
            database,
            node_id,
            folder=folder,
            min_free_bytes=min_free_bytes,
            now=time.time(),
            beat_seconds=BEAT_SECONDS,
        )
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    return app
