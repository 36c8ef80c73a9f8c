"""Checks of settings: each returns the value or raises a ValueError, one sentence with key, value and range."""

import math
from collections.abc import Sequence
from typing import TypeGuard


def whole(key: str, value: object, *, at_least: int) -> int:
    """A whole number; 1e6 is one."""
    if _is_number(value) and value == math.floor(value) and value >= at_least:
        return int(value)
    raise refusal(key, value, f"a whole number of at least {at_least}")


def number(key: str, value: object, *, above: float | None = None, at_least: float = -math.inf) -> float:
    """A finite number."""
    if _is_number(value) and value >= at_least and (above is None or value > above):
        return float(value)
    raise refusal(
        key, value, f"a finite number {f'above {above:g}' if above is not None else f'of at least {at_least:g}'}"
    )


def share(key: str, value: object) -> float:
    """A number from 0 to 1."""
    if _is_number(value) and 0 <= value <= 1:
        return float(value)
    raise refusal(key, value, "a number from 0 to 1")


def choice(key: str, value: object, options: Sequence[str]) -> str:
    """One of some names."""
    if isinstance(value, str) and value in options:
        return value
    raise refusal(key, value, " or ".join(options))


def flag(key: str, value: object) -> bool:
    """A truth value."""
    if isinstance(value, bool):
        return value
    raise refusal(key, value, "true or false")


def refusal(key: str, value: object, allowed: str) -> ValueError:
    """What to raise: the value is shown as it is written in a configuration."""
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return ValueError(f"{key}={shown}: must be {allowed}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
