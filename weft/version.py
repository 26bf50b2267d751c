"""Weft's version: the one place that states it. It is part of the key of every cached object."""

__version__ = "0.1.0"
