"""The administrator's pages: each module reads rows and fills the templates of `node/web/pages`."""

from fastapi import APIRouter

from node.web.views.audit import router as audit_router
from node.web.views.capacity import router as capacity_router
from node.web.views.configuration import router as configuration_router
from node.web.views.conformance import router as conformance_router
from node.web.views.find import router as find_router
from node.web.views.job import router as job_router
from node.web.views.needs import router as needs_router
from node.web.views.now import router as now_router
from node.web.views.peers import router as peers_router
from node.web.views.people import router as people_router
from node.web.views.render import error_page
from node.web.views.rules import router as rules_router
from node.web.views.selftest import router as selftest_router
from node.web.views.session import router as session_router

__all__ = ["error_page", "router"]

router = APIRouter(include_in_schema=False)
for page in (
    now_router,
    needs_router,
    find_router,
    job_router,
    peers_router,
    capacity_router,
    selftest_router,
    rules_router,
    configuration_router,
    people_router,
    audit_router,
    conformance_router,
    session_router,
):
    router.include_router(page)
