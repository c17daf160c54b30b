"""Pixels: from received slices to a verified derived series. No network, no database."""
