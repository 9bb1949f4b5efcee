"""Refusing values that an adapter's configuration can't have."""

from typing import Any, get_args

from holdfast.errors import HoldfastError

LEARNED = "learned"


def one_of(name: str, value: object, literal: Any) -> None:
    """Raise HoldfastError unless `value` is one of a Literal's."""
    known = get_args(literal)
    if value not in known:
        raise HoldfastError(f"{name}={value!r}", wanted=f"one of {', '.join(map(str, known))}")


def at_least(name: str, value: int | None, least: int) -> None:
    """Raise HoldfastError for a number below `least`; None is left to the caller."""
    if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
        raise HoldfastError(f"{name}={value!r}", wanted=f"a whole number, at least {least}")


def share(name: str, value: float) -> None:
    """Raise HoldfastError unless 0 <= value < 1."""
    if not 0.0 <= value < 1.0:
        raise HoldfastError(f"{name}={value!r}", wanted="a share of at least 0 and below 1")


def scaled(value: object) -> None:
    """Raise HoldfastError unless `value` is "learned" or a finite number other than zero."""
    if value == LEARNED or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) < 1e6):
        return
    raise HoldfastError(f"scale={value!r}", wanted=f"a number other than 0, or {LEARNED!r}")
