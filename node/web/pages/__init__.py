"""The administrator's pages: rows read, and filled into the templates of `node/web/templates`."""

from fastapi import APIRouter

from node.web.pages import find, job, now, site
from node.web.pages.render import error_page

__all__ = ["error_page", "router"]

router = APIRouter(include_in_schema=False)
for page in (now, find, job, site):
    router.include_router(page.router)
