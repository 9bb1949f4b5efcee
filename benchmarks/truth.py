"""What a shift really does to a language model: KL, loss rise, and the Fisher form of all layers together."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.batches import Row, collate

State = dict[str, Tensor]  # the adapter's tensors
Place = tuple[int, float]  # depth, and the share of the shift
BATCH = 8
# Of the central difference, in shares of the whole shift. Its error is of second order; a smaller one would drown in
# float32, in which transformers' norms and attention compute whatever the model's precision.
STEP = 1e-2


@torch.no_grad()
def measured(tuned: nn.Module, rows: list[Row], places: dict[Place, State]) -> dict[Place, dict[str, float]]:
    """KL(p_anchor || p_now), loss rise, and the exact quadratic form at each place, in nats per token.

    Args:
        tuned: a LoRA model; it is left as it is.
        rows: sequences of one length.
        places: every depth at scale 1 and maybe at others, with the adapter's tensors there.
    """
    model: Any = copy.deepcopy(tuned).double().eval()
    sums = {place: {"kl": 0.0, "loss_rise": 0.0, "exact": 0.0} for place in places}
    items = 0
    for batch in (collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)):
        labels = batch["input_ids"][:, 1:].flatten()
        items += len(labels)
        with model.disable_adapter():
            before = log_probabilities(model, batch)
        forms = {depth: fisher_form(model, batch, before, at) for (depth, scale), at in places.items() if scale == 1}
        for place, at in places.items():
            after = log_probabilities(model, batch, at)
            sums[place]["kl"] += float(F.kl_div(after, before, log_target=True, reduction="sum"))
            sums[place]["loss_rise"] += float(F.nll_loss(after - before, labels, reduction="sum"))
            sums[place]["exact"] += place[1] ** 2 * forms[place[0]]
    return {place: {name: total / items for name, total in found.items()} for place, found in sums.items()}


def log_probabilities(model: Any, batch: dict[str, Tensor], at: State | None = None) -> Tensor:
    """(items, classes)."""
    if at is not None:
        load(model, at)
    return F.log_softmax(model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1), dim=-1)


def fisher_form(model: Any, batch: dict[str, Tensor], before: Tensor, at: State) -> float:
    """1/2 <D, F D> summed over the batch's items, F the Fisher of all layers together, exact in the labels.

    Half the variance, under p at the anchor, of the derivative of the log-probabilities along the shift.
    """
    ahead, behind = (log_probabilities(model, batch, scaled(at, step)) for step in (STEP, -STEP))
    along, p = (ahead - behind) / (2 * STEP), before.exp()
    return 0.5 * float(((p * along.square()).sum(dim=1) - (p * along).sum(dim=1).square()).sum())


def state(model: nn.Module) -> State:
    """A copy of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def scaled(at: State, scale: float) -> State:
    """The shift times a number: B alone is scaled."""
    return {name: tensor * scale if "lora_B" in name else tensor for name, tensor in at.items()}


@torch.no_grad()
def load(model: nn.Module, at: State) -> None:
    """Put the adapter where it was."""
    parameters = dict(model.named_parameters())
    for name, tensor in at.items():
        parameters[name].copy_(tensor)
