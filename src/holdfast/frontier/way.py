"""One way of holding on, as a recipe names it: keys of a tune recipe, some with several values to try."""

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import Field, model_serializer, model_validator

from holdfast.errors import HoldfastError, closest
from holdfast.frontier.values import Range, is_range
from holdfast.frontier.ways import NAMED
from holdfast.recipe import Settings, flat, known_keys
from holdfast.tune_recipe import TuneRecipe

Values = list[Any] | Range
BUDGET = "budget"
OPTIONS = "tuner."  # keys of the method's own options
COMMON = ("model", "target", "source", "seed", "length", "held_out", "dtype", "samples", "sample_length")


class Way(Settings):
    """A name and the keys in which its runs differ from the base.

    A recipe may give a name of the table alone, a mapping of keys with a `name`, or both: `like` takes a named way's
    keys, and those beside it change them. `stops` makes it the early stopping of another way: no runs of its own.
    """

    name: str = Field(min_length=1)
    stops: str | None = None
    keys: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_recipe(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, **_split(_named(value))}
        if not isinstance(value, Mapping) or isinstance(value.get("keys"), Mapping):
            return value
        given = dict(value)
        if "name" not in given:
            raise ValueError("a way needs a name: `- name: mine`")
        name, like = str(given.pop("name")), given.pop("like", None)
        own = {} if like is None else dict(_named(str(like)))
        changed = _split(given)
        own_keys = _split(own)
        return {
            "name": name,
            "stops": changed["stops"] or own_keys["stops"],
            "keys": {**own_keys["keys"], **changed["keys"]},
        }

    @model_validator(mode="after")
    def _sound(self) -> "Way":
        for key, value in self.keys.items():
            _check_key(key)
            if is_range(value):
                Range.model_validate(value)
            elif isinstance(value, list) and not _is_listed(key) and not value:
                raise ValueError(f"way {self.name!r}: {key} has no values to try")
        if self.stops is not None and self.keys:
            raise ValueError(f"way {self.name!r} stops {self.stops!r} early and has no runs: leave its keys out")
        return self

    @model_serializer
    def _as_recipe(self) -> dict[str, Any]:
        return {"name": self.name, **({} if self.stops is None else {"stops": self.stops}), **self.keys}

    def fixed(self) -> dict[str, Any]:
        """The keys that all of its runs share."""
        return {key: value for key, value in self.keys.items() if not _is_tried(key, value)}

    def axes(self, base: TuneRecipe) -> dict[str, Values]:
        """The keys with several values: a list of them, or a range in the key's own unit."""
        found: dict[str, Values] = {}
        for key, value in self.keys.items():
            if is_range(value):
                ranged = Range.model_validate(value)
                found[key] = ranged.times(_of(base, key)) if ranged.relative else ranged
            elif _is_tried(key, value):
                found[key] = list(dict.fromkeys(value))
        return found


def _of(base: TuneRecipe, key: str) -> Any:
    """The base's value there, which a relative range multiplies."""
    value = flat(base.model_dump()).get(key)
    if value is None:
        raise HoldfastError(f"a relative range of {key}, which base has not", remedy=f"give base.{key} a value")
    return value


def _named(name: str) -> dict[str, Any]:
    if name not in NAMED:
        near = closest(name, NAMED)
        known = f"did you mean {near}?" if near else f"known: {', '.join(NAMED)}"
        raise ValueError(f"no way is called {name!r}: {known}; a way of your own is a mapping with a name")
    return NAMED[name]


def _split(given: Mapping[str, Any]) -> dict[str, Any]:
    """`stops`, and all other keys with dots between their parts."""
    rest = dict(given)
    return {"stops": rest.pop("stops", None), "keys": _dotted(rest)}


def _dotted(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in given.items():
        nested = isinstance(value, Mapping) and not is_range(value)
        found |= _dotted(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _check_key(key: str) -> None:
    known = known_keys(TuneRecipe)
    if key.split(".")[0] in COMMON:
        raise ValueError(f"{key} is what all runs have in common: it belongs in `base`")
    if key.startswith(OPTIONS):
        return  # which there are depends on the method, so the whole recipe of a run is checked for it
    if key not in known:
        near = closest(key, known, count=1)
        raise ValueError(f"unknown key {key!r}" + (f" (did you mean {near!r}?)" if near else ""))


def _is_tried(key: str, value: Any) -> bool:
    """Whether a value is several to try: a range, or a list where a run takes one value."""
    return is_range(value) or (isinstance(value, list) and not _is_listed(key))


def _is_listed(key: str) -> bool:
    """Whether a run itself takes a list there; budgets are listed to be tried, though a run may have several."""
    if key == BUDGET or key.startswith(OPTIONS):
        return False
    part: Any = TuneRecipe
    for name in key.split("."):
        part = part.model_fields[name].annotation
    return list in (get_origin(part), *map(get_origin, get_args(part)))
