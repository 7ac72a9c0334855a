"""Reporting faults of settings and files: all of them in one error, or collected in a list."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5  # faults that an error names


def raise_problems(group: str, problems: Sequence[str]) -> None:
    """Raises a ValueError with all problems of a group of settings, if there are any."""
    if problems:
        raise ValueError(f"{group}: " + ", ".join(problems))


def raise_or_collect(error: Exception, faults: list[str] | None) -> None:
    """Raises the error; where faults are collected, adds its message to them instead."""
    if faults is None:
        raise error
    faults.append(str(error))


def refuse(faults: Sequence[str], what: str, hint: str) -> None:
    """Raises a ValueError with the first faults and the number of the others, if there are any."""
    if faults:
        more = f" (and {len(faults) - _SHOWN} more: {hint})" if len(faults) > _SHOWN else ""
        raise ValueError(f"{what}: {'; '.join(faults[:_SHOWN])}{more}")
