"""The names that exist nearest to one that does not."""

from collections.abc import Iterable
from difflib import get_close_matches

_SUGGESTED = 3


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The names most like one, as the end of a sentence; empty where a suggestion would be a guess.

    A dotted name may be given by its last parts alone.
    """
    parts = name.count(".") + 1
    by_end: dict[str, list[str]] = {}
    for other in sorted(dict.fromkeys(names), key=lambda other: other.count(".") >= parts):  # whole names first
        by_end.setdefault(".".join(other.split(".")[-parts:]), []).append(other)
    near = get_close_matches(name, by_end, n=1)
    if not near:
        return ""
    found = [other for other in by_end[near[0]] if other == near[0]] or by_end[near[0]]
    return f"; did you mean {' or '.join(found[:_SUGGESTED])}?"
