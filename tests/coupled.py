"""Curvatures that couple layers: their whole form over all layers, as it is and from its definition."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from laws import dense, price
from networks import NETWORKS, Batch, Network
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.curvature.samples_joint import SamplesJoint
from holdfast.curvature.tridiagonal import Tridiagonal
from holdfast.shifts.dense import Dense

KINDS = [kind for kind in catalogue.names("curvature") if issubclass(catalogue.curvature(kind), Coupled)]


def anchor_of(name: str, kind: str, batches: list[Any] | None = None, **options: Any) -> Anchor:
    """The anchor of a network, on its own rows two at a time unless told otherwise."""
    network: Network = NETWORKS[name]
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    batches = network.batches(2) if batches is None else batches
    return Anchor.estimate(options.pop("model", None) or network.build(), batches, curvature=kind, **options)


def of_outputs(model: nn.Module, batch: Batch, kind: str = "tridiagonal", **options: Any) -> Anchor:
    """Over all linear layers, the head as well, for half the squared error of every position's outputs."""
    options = {"targets": ".*", "progress": False, "fisher": "exact", "forward_loss": outputs_and_targets} | options
    return Anchor.estimate(model, [batch], curvature=kind, **options)


def outputs_and_targets(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(items, outputs) and targets that the exact Fisher does not look at."""
    outputs = model(batch["x"]).flatten(0, -2)
    return outputs, torch.zeros_like(outputs)


def joint_price(curvatures: Mapping[str, Any], deltas: Mapping[str, Tensor]) -> Tensor:
    """q of dense shifts of all layers, whatever the kind."""
    kind = type(next(iter(curvatures.values())))
    if issubclass(kind, Coupled):
        return kind.joint(curvatures, {name: Dense(delta) for name, delta in deltas.items()})
    return torch.stack([price(curvature, deltas[name]) for name, curvature in curvatures.items()]).sum()


def random_shifts(curvatures: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """A dense shift of every layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(curvature.shape, generator=generator, dtype=torch.float64)
        for name, curvature in curvatures.items()
    }


def form(curvatures: Mapping[str, Any], **options: Any) -> Tensor:
    """q as a matrix over all layers' weights, (P, P): half its gradient at each unit vector."""
    sizes = [math.prod(curvature.shape) for curvature in curvatures.values()]
    kind = type(next(iter(curvatures.values())))
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        whole = unit.clone().requires_grad_()
        parts = {
            name: Dense(part.reshape(curvature.shape))
            for (name, curvature), part in zip(curvatures.items(), whole.split(sizes), strict=True)
        }
        columns.append(torch.autograd.grad(kind.joint(curvatures, parts, **options) / 2, whole)[0])
    return torch.stack(columns)


def defined(curvatures: Mapping[str, Any], *, taper: bool = True) -> Tensor:
    """The same from the definition, block by block."""
    names = list(curvatures)
    return torch.cat([torch.cat([_block(curvatures, a, b, taper) for b in names], dim=1) for a in names])


def _block(curvatures: Mapping[str, Any], row: str, column: str, taper: bool) -> Tensor:
    one, other = curvatures[row], curvatures[column]
    if row == column:
        return dense(one)
    if isinstance(one, SamplesJoint):
        return _gradients(one).T @ _gradients(other)
    assert isinstance(one, Tridiagonal)
    if one.number > other.number:
        return _block(curvatures, column, row, taper).T
    if other.number != one.number + 1 or one.cross is None:
        return torch.zeros(math.prod(one.shape), math.prod(other.shape), dtype=torch.float64)
    length = _run(curvatures, one.number)
    tau = 1 / (2 * math.cos(math.pi / (length + 1))) if taper else 1.0
    return tau * torch.kron(one.cross.gradients, one.cross.inputs)


def _gradients(curvature: SamplesJoint) -> Tensor:
    """Each example's own gradient, (n, out * in)."""
    inputs = curvature.inputs
    if inputs.dim() == 2:
        inputs = torch.eye(curvature.shape[1], dtype=torch.float64)[inputs]
    return torch.einsum("nto,nti->noi", curvature.gradients, inputs).flatten(1)


def _run(curvatures: Mapping[str, Any], number: int) -> int:
    """How many layers hang together around the one of that number."""
    linked = {c.number: c.cross is not None for c in curvatures.values()}
    first = number
    while first - 1 in linked and linked[first - 1]:
        first -= 1
    last = number
    while linked[last] and last + 1 in linked:
        last += 1
    return last - first + 1
