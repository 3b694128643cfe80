"""Sockets, clocks, files and tasks: what carries the cores of both sides. The only such layer."""
