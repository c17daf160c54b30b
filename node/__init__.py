"""Wires everything; the only package that opens a socket."""
