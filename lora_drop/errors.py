"""The exception for mistakes that the user can fix, and helpers for messages."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake in the input. The message says what is wrong, where, and what to do; commands exit with code 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, plus the next one if it ends with a colon.

    Return the error's type if it has no message.
    """
    first, *others = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


def counted(number: int, noun: str) -> str:
    """Return `1 row`, or `1,200 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def first_three(texts: Sequence[str]) -> str:
    """Return the first three texts, and a sign if there are others."""
    return "; ".join(texts[:3]) + ("; …" if len(texts) > 3 else "")


def closest(name: str, known: list[str]) -> str:
    """Return `" Did you mean 'X'?"` for the known name nearest to `name`, or an empty string."""
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
