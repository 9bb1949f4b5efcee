"""From scores to chosen entries, over all tensors of an adapter: nothing dense is kept, nothing is moved yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from holdfast.sift.allocation import Competition, top, top_rows, total
from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import Found
from holdfast.sift.scores import Score, scores
from holdfast.sift.sizes import as_rows


@dataclass(frozen=True)
class Picked:
    """The chosen entries of one tensor.

    Attributes:
        indices: (k,) int64, ascending, flat.
        energy: of the gradient at them, sum g^2; None for scores that need no gradient.
        whole: of the gradient of the whole tensor.
    """

    indices: Tensor
    energy: float | None = None
    whole: float | None = None


def pick(
    means: Iterable[tuple[str, Tensor | None]],
    found: Mapping[str, Found],
    config: SiftConfig,
    score: Score,
    *,
    compete: bool,
) -> dict[str, Picked]:
    """Choose the entries of every tensor.

    Args:
        means: name -> mean gradient, or mean square for a score that is so; each is read once and let go.
        found: the tensors.
        config: of the adapter.
        score: what they compete by.
        compete: across tensors, as scope "global" does; else each tensor keeps its number of entries.

    Raises:
        HoldfastError: scores that are none, or a global number of entries that the bounds don't allow.
    """
    sizes = {name: one.tensor.numel() for name, one in found.items()}
    entries = total(sizes, config.share, config.count) if compete else 0
    contest = Competition(sizes, entries, config.floor, config.ceiling) if compete else None
    picked: dict[str, Picked] = {}
    wholes: dict[str, float | None] = {}
    for name, mean in means:
        one = found[name]
        own = scores(score, mean, one.tensor.detach(), name, config.seed)
        energy = None if mean is None else (mean if score.squared else mean.square()).flatten()
        wholes[name] = _sum(energy)
        if contest is not None:
            contest.add(name, own.flatten(), energy)
        else:
            count = len(one.entries.values)
            indices = highest(config.scope, one.layer.get_base_layer(), one.parameter, own, count)
            picked[name] = Picked(indices, _sum(energy, indices), wholes[name])
        del mean, own, energy  # the next pass over the batches begins before they would be replaced
    if contest is not None:
        won = contest.winners()
        picked = {name: Picked(indices, _sum(energy), wholes[name]) for name, (indices, energy) in won.items()}
    return picked


def highest(scope: str, module: nn.Module, parameter: str, own: Tensor, count: int) -> Tensor:
    """(count,) ascending flat indices of the highest scores in one tensor, or shared out over its rows.

    Args:
        scope: "row", or another, in which the tensor is one.
        module, parameter: the base layer, and "weight" or "bias".
        own: scores, of the tensor's shape.
        count: of entries.
    """
    own = own.contiguous()
    return top_rows(as_rows(module, parameter, own), count) if scope == "row" else top(own.flatten(), count)


def _sum(energy: Tensor | None, indices: Tensor | None = None) -> float | None:
    if energy is None:
        return None
    return float((energy if indices is None else energy[indices]).double().sum())
