"""Tidegate: move, split, verify and switch live SQL databases without downtime."""

__version__ = "0.1.0"
