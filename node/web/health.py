"""Is the process alive, and does the node take and process series? Open to every monitor."""

import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from node import health
from node.web.parts import Parts, PartsOf

BEAT_SECONDS = 15.0  # a parent that has not written its heartbeat for so long does not serve

router = APIRouter(tags=["monitoring"])


@router.get("/healthz", summary="The web process is alive")
def alive() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="The node takes and processes series; else 503 with the reasons",
    responses={503: {"description": "It does not; the body says why."}},
)
def ready(parts: PartsOf) -> JSONResponse:
    reasons = unready(parts)
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


def unready(parts: Parts) -> list[str]:
    """Why the node cannot take and process series; empty where it can."""
    settings = parts.settings.config
    return health.unready(
        parts.database,
        parts.settings.node_id,
        folder=settings.folder,
        min_free_bytes=settings.storage.min_free_bytes,
        now=time.time(),
        beat_seconds=BEAT_SECONDS,
    )
