"""Queries for pages and monitors: they read, and never write."""
