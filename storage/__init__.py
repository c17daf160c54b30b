"""Rows and files. Knows SQL and disks; no network, no pixels."""
