"""The administrator's pages and the REST API."""
