"""A tuner with the options that a recipe gives it."""

import json
from collections.abc import Mapping
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.recipe import validate
from holdfast.tuners.tuner import Tuner

PART = "tuner."  # where a recipe has a method's own options
TOP = ("rank", "alpha")  # options that recipes have at their top


def written(value: Any) -> str:
    """An option's value as recipes and --set have it: null, false, [3, 5, 3]."""
    return value if isinstance(value, str) else json.dumps(value)


def chosen(tuner: type[Tuner], given: Mapping[str, Any], **top: Any) -> Tuner:
    """The tuner with these options.

    Args:
        tuner: which.
        given: its own options, by name.
        top: rank and alpha, where the recipe says them; None does not.

    Raises:
        HoldfastError: an option that the method does not have, with the nearest one, or a value of the wrong kind.
    """
    known = tuner.Options.model_fields
    for name, value in top.items():
        if value is not None and name not in known:
            own = ", ".join(f"{PART}{one}" for one in known)
            raise HoldfastError(
                f"--{name} {value}: --method {tuner.name} has none",
                remedy="leave it out" + (f"; its own options: {own}" if own else ""),
            )
    for name in [name for name in TOP if name in given and name in known]:
        raise HoldfastError(
            f"{PART}{name}={given[name]}: recipes have {name} at their top", remedy=f"say it as {name}={given[name]}"
        )
    if given and not known:
        raise HoldfastError(
            f"{', '.join(f'{PART}{name}' for name in given)}: --method {tuner.name} has no options of its own",
            remedy="leave it out",
        )
    values = {**given, **{name: value for name, value in top.items() if value is not None}}
    return tuner(validate(tuner.Options, values, prefix=PART))
