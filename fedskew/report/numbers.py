"""Numbers as the cells of a report show them."""

from __future__ import annotations


def three(value: float | None) -> str:
    """Three digits; a dash where there is no figure."""
    return "–" if value is None else f"{value:.3f}"


def dash(value: object) -> str:
    """A value, or a dash where there is none."""
    return "–" if value is None else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"


def megabytes(count: float) -> str:
    """`7.02 MB`, `167 MB`, `5.11 GB`."""
    value, unit = (count / 1e9, "GB") if count >= 999.5e6 else (count / 1e6, "MB")
    return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.1f} {unit}" if value >= 9.95 else f"{value:.2f} {unit}"
