"""Figures that sources give to the report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """A figure for the report."""

    file: str
    title: str
    caption: str
    content: bytes
