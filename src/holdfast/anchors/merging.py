"""Several anchors as one: of more data at the same weights, or of one task after another."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.two_sided import TwoSided
from holdfast.errors import HoldfastError

if TYPE_CHECKING:
    from holdfast.anchor import Anchor

KEPT = ("base_model", "products", "base", "plan")  # facts of one anchor that are those of several
ORIGIN = ("base_model", "source", "seed", "data_sha256")  # facts that tell parts apart
OPTIONS = ("item", "per", "draws", "fraction", "form", "space", "places")  # that must agree for sums to mean the same
APPROXIMATION = (
    "each layer's sum of Kronecker products is one Kronecker product with the same partial traces; "
    "a penalty that is given the list of anchors adds them exactly"
)


def merge(anchors: Sequence["Anchor"]) -> dict[str, Any]:
    """The arguments of an `Anchor` on all the data together.

    C is a mean over scored items, so each part counts by its own: what one run over all the data would have given,
    exactly, for every kind whose sums add up.

    Raises:
        HoldfastError: fewer than two anchors, other weights, another kind or other options, the same data twice, or
            a kind that does not add up.
    """
    if len(anchors) < 2:
        raise HoldfastError(f"merging takes two anchors or more, and there are {len(anchors)}")
    for anchor in anchors:
        if "tasks" in anchor.facts:
            raise HoldfastError(
                "an anchor accumulated over tasks is a sum over them, and merging takes means over data",
                remedy="merge each task's anchors first, or give the penalty the list of anchors",
            )
    for other in anchors[1:]:
        _check_alike(anchors[0], other)
        _check_weights(anchors[0], other)
    parts = [part for anchor in anchors for part in _parts(anchor)]
    _check_data(parts)
    total = sum(anchor.items for anchor in anchors)
    shares = [anchor.items / total if total else 1 / len(anchors) for anchor in anchors]
    first = anchors[0]
    hashes = "".join(part.get("data_sha256") or "" for part in parts)
    digest = {"data_sha256": hashlib.sha256(hashes.encode()).hexdigest()} if hashes else {}
    common = {k: v for k, v in _kept(first).items() if all(a.facts.get(k) == v for a in anchors)}
    curvatures = _together(anchors, lambda same: type(same[0]).merged(same, shares))
    return {
        "curvatures": curvatures,
        "weights": first.weights,
        "kind": first.kind,
        "fisher": first.fisher,
        "items": total,
        "facts": {"base_model": first.facts.get("base_model")}
        | common
        | digest
        | _captured(curvatures)
        | {"parts": parts},
    }


def accumulate(old: "Anchor", new: "Anchor", decay: float = 1.0) -> dict[str, Any]:
    """The arguments of an `Anchor` of the tasks so far and a new one: decay * C_old + C_new, at the new weights.

    Online Laplace (arXiv 1805.07810): precisions of one task after another add up, so this is a sum, not the
    mean that `merge` takes. Half the form is a rise in nats summed over tasks. Exact for every kind that adds up.
    A sum of Kronecker products is no Kronecker product: there `facts["approximation"]` says that for each layer

        sum_t w_t S_t kron G_t  ->  S kron G,  the partial traces over inputs and over outputs as they were,

    which is exact where the tasks' S, or their G, are multiples of each other.

    Raises:
        HoldfastError: other layers, another kind or other options, a negative decay, or a kind that does not add up.
    """
    if not 0 <= decay < float("inf"):
        raise HoldfastError(f"decay={decay}", wanted="a number of at least 0; 1 forgets nothing")
    _check_alike(old, new)
    shares = [decay, 1.0]
    tasks = [task | {"share": task["share"] * decay} for task in _tasks(old)] + _tasks(new)
    curvatures = _together([old, new], lambda same: _summed(same, shares))
    products = any(isinstance(curvature, TwoSided) for curvature in curvatures.values())
    facts = _kept(new) | _captured(curvatures) | {"tasks": tasks}
    return {
        "curvatures": curvatures,
        "weights": new.weights,
        "kind": new.kind,
        "fisher": new.fisher,
        "items": old.items + new.items,
        "facts": facts | ({"approximation": APPROXIMATION} if products else {}),
    }


def _kept(anchor: "Anchor") -> dict[str, Any]:
    return {k: anchor.facts[k] for k in (*KEPT, *OPTIONS) if k in anchor.facts}


def _captured(curvatures: Mapping[str, Curvature]) -> dict[str, Any]:
    """What share of its trace each layer's approximation holds, as in an anchor that was measured."""
    found = {name: shares for name, curvature in curvatures.items() if (shares := curvature.captured())}
    return {"captured": found} if found else {}


def _parts(anchor: "Anchor") -> list[dict[str, Any]]:
    """What an anchor was measured on: items and data of each run that is in it."""
    own = {"items": anchor.items} | {k: anchor.facts[k] for k in ORIGIN if k in anchor.facts}
    return anchor.facts.get("parts") or [own]


def _tasks(anchor: "Anchor") -> list[dict[str, Any]]:
    """The tasks that are in an anchor, each with its share of the sum."""
    return anchor.facts.get("tasks") or [{"share": 1.0, "items": anchor.items, "parts": _parts(anchor)}]


def _summed(parts: Sequence[Any], shares: Sequence[float]) -> Curvature:
    """The sum of the parts, each times its share; of Kronecker products, the one of the same partial traces."""
    kind: type[Any] = type(parts[0])
    if not issubclass(kind, TwoSided):
        if not kind.linear:
            raise HoldfastError(
                f"curvatures {kind.kind!r} of several tasks do not add up to one",
                remedy="give the penalty the list of anchors, which it adds up exactly",
            )
        return kind.merged(parts, shares)
    inputs, gradients = [part.inputs for part in parts], [part.gradients for part in parts]
    sizes = [(float(s.diagonal().sum()), float(g.diagonal().sum())) for s, g in zip(inputs, gradients, strict=True)]
    traces = [share * s * g for share, (s, g) in zip(shares, sizes, strict=True)]
    total = sum(traces) or 1.0
    mean = sum(trace * s for trace, (s, _) in zip(traces, sizes, strict=True)) / total or 1.0  # the new S's trace
    of_inputs = [trace / s * mean / total if s else 0.0 for trace, (s, _) in zip(traces, sizes, strict=True)]
    of_gradients = [trace / g / mean if g else 0.0 for trace, (_, g) in zip(traces, sizes, strict=True)]
    rows = sum((part.rows for part in parts[1:]), parts[0].rows)
    return kind(type(inputs[0]).merged(inputs, of_inputs), type(gradients[0]).merged(gradients, of_gradients), rows)


def _together(anchors: Sequence["Anchor"], combine: Callable[[Sequence[Any]], Curvature]) -> dict[str, Curvature]:
    """Each layer's curvatures as one, in the CPU's memory: files are read there, models may be anywhere.

    What layers shared in every anchor they go on sharing, where it is equal.
    """
    made: dict[str, Curvature] = {}
    known: dict[tuple[Any, ...], Tensor] = {}
    for name, first in anchors[0].curvatures.items():
        same = [anchor.curvatures[name] for anchor in anchors]
        _check_structure(name, same)
        combined = combine([_resting(part) for part in same])
        tensors = combined.tensors()
        of_parts = [part.tensors() for part in same]
        for key, tensor in tensors.items():
            origin = (key, *((part[key].device, part[key].data_ptr()) for part in of_parts))
            earlier = known.setdefault(origin, tensor)
            if earlier.shape == tensor.shape and bool((earlier == tensor).all()):
                tensors[key] = earlier
        made[name] = type(first).from_tensors(tensors)
    return made


def _resting(curvature: Curvature) -> Curvature:
    """The curvature with all its tensors in the CPU's memory."""
    tensors = curvature.tensors()
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return curvature
    return type(curvature).from_tensors({name: tensor.cpu() for name, tensor in tensors.items()})


def _check_alike(one: "Anchor", other: "Anchor") -> None:
    """Whether sums over the two mean the same."""
    first, second = _settings(one), _settings(other)
    for name, value in first.items():
        if second[name] != value:
            raise HoldfastError(
                f"the anchors were measured differently: {name} is {value!r} in one, {second[name]!r} in another",
                remedy="estimate them alike, or give the penalty the list of anchors, which it adds up",
            )
    alone = sorted(one.curvatures.keys() ^ other.curvatures.keys())
    if alone:
        raise HoldfastError(
            f"the anchors cover other layers: {alone[0]!r} is in one alone", remedy="estimate them with one --targets"
        )


def _settings(anchor: "Anchor") -> dict[str, Any]:
    return {"curvature": anchor.kind, "fisher": anchor.fisher} | {k: anchor.facts.get(k) for k in OPTIONS}


def _check_weights(one: "Anchor", other: "Anchor") -> None:
    """Whether they were measured at the same weights, those under an adapter included."""
    for ours, theirs in ((one.weights, other.weights), (one.facts.get("base", {}), other.facts.get("base", {}))):
        for name, known in ours.items():
            if theirs.get(name, {}).get("sha256") != known["sha256"]:
                raise HoldfastError(
                    f"the anchors belong to different models: the weights of layer {name!r} differ",
                    wanted="anchors measured at the same base weights",
                    causes=["another checkpoint or revision", "the model was loaded in another precision"],
                    remedy="estimate them on one base model; for tasks one after another see Anchor.accumulate",
                )


def _check_structure(name: str, same: Sequence[Curvature]) -> None:
    first, *others = ((one.shape, sorted(one.tensors()), _blocked(one)) for one in same)
    for other in others:
        if other != first:
            raise HoldfastError(
                f"the anchors store layer {name!r} differently: {first[0]} as {', '.join(first[1])} in one, "
                f"{other[0]} as {', '.join(other[1])} in another, or in blocks of another size",
                remedy="estimate them with the same memory budget and targets",
            )


def _blocked(curvature: Curvature) -> list[tuple[int, ...]]:
    """Shapes of what is stored in blocks, which add up block by block."""
    return [tuple(tensor.shape) for name, tensor in sorted(curvature.tensors().items()) if name.endswith("blocks")]


def _check_data(parts: Sequence[Mapping[str, Any]]) -> None:
    seen, files = set(), set()
    for part in parts:
        data = part.get("data_sha256"), part.get("seed")
        if data[0] and data in seen:
            raise _read_twice("on the same data with the same seed", [])
        seen.add(data)
        source = part.get("source") or {}
        file = source.get("sha256"), part.get("seed")
        if file[0] and file in files:
            causes = ["one of them stopped sooner, or cut the text to another length"]
            raise _read_twice(f"on {source.get('path')} with the same seed", causes)
        files.add(file)


def _read_twice(how: str, causes: list[str]) -> HoldfastError:
    return HoldfastError(
        f"two of the anchors were measured {how}",
        wanted="anchors of different data, or of the same data with other drawn labels (seed)",
        causes=causes,
        remedy="leave one out: merging would count it twice",
    )
