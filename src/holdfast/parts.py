"""What curvature is measured of, one part for each parameter: base layers' weights, or what an adapter trains."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from holdfast.curvature.statistic import LayerSize
from holdfast.errors import HoldfastError
from holdfast.layers import LayerKind, is_embedding, kind_of, require_kind
from holdfast.targets import ALL_LINEAR, Targets, base_layers, canonical, matching, select, trained_in_place

Space = Literal["weights", "adapter"]
SPACES: tuple[Space, ...] = ("weights", "adapter")
PROMPT = "prompt_encoder"  # where PEFT's prompt methods keep their layers, which do not see the batch's rows


@dataclass(frozen=True)
class Part:
    """One parameter as a matrix: (out, in) where it is a layer's weight, (1, n) where it is anything else."""

    module: Any
    parameter: str  # its name in the module
    kind: LayerKind | None  # None: it is no layer's weight, or the layer is not called on the batch's rows
    chain: str = ""  # the adapter of one layer that it belongs to
    within: Any = None  # the adapter layer that trains in this very weight, if one does

    @property
    def tensor(self) -> Any:
        """The parameter, live: a Trainer may have put another in its place."""
        return getattr(self.module, self.parameter)

    @property
    def pretrained(self) -> Tensor:
        """The parameter as it is without adapters, to be read only."""
        return self.tensor if self.within is None else self.within.pretrained_weight()

    def matrix(self, tensor: Tensor) -> Tensor:
        """View a tensor of the parameter's own shape as a matrix."""
        return tensor.reshape(1, -1) if self.kind is None else self.kind.matrix(self.module, tensor)

    @property
    def size(self) -> tuple[int, int]:
        """The matrix's shape."""
        return (1, self.tensor.numel()) if self.kind is None else self.kind.size(self.module)

    @property
    def indexed(self) -> bool:
        """Whether input rows are indices instead of vectors."""
        return self.kind is not None and is_embedding(self.kind)


def select_parts(model: nn.Module, targets: Targets, space: Space) -> dict[str, Part]:
    """Canonical name -> what is measured.

    In the space of the weights, the layers that `targets` names. In the adapter's, what the model trains: weights of
    the adapter's own layers ("...q_proj.lora_A.default"), and parameters that are no layer's weight
    ("...q_proj.ia3_l.default"). "all-linear" is then all of it; other targets name adapted layers, or parts.

    Raises:
        HoldfastError: nothing matches, nothing is trained, or everything is, so that there is no adapter.
    """
    if space not in SPACES:
        raise HoldfastError(f"space={space!r}", wanted=f"one of {', '.join(SPACES)}")
    if space == "weights":
        within = trained_in_place(model)
        found = select(model, targets).items()
        return {n: Part(m, "weight", require_kind(n, m), within=within.get(n)) for n, m in found}
    _check_adapter(model)
    trained = {name: part for name, part in parts_in(model, space).items() if part.tensor.requires_grad}
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return trained
    owners = [canonical(n) for n, m in model.named_modules() if hasattr(m, "base_layer")]
    known = {name: {name, *(owner for owner in owners if name.startswith(f"{owner}."))} for name in trained}
    chosen = matching(targets, set().union(*known.values()))
    return {name: part for name, part in trained.items() if chosen & known[name]}


def parts_in(model: nn.Module, space: Space) -> dict[str, Part]:
    """Canonical name -> part for all that an anchor's names may mean, trained or not."""
    if space == "weights":
        within = trained_in_place(model)
        layers = base_layers(model).items()
        return {n: Part(m, "weight", kind_of(m), within=within.get(n)) for n, m in layers}
    modules = dict(model.named_modules())
    holders = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    found: dict[str, Part] = {}
    strange = [f"{path}." for path, module in modules.items() if getattr(module, "lora_variant", None)]
    for path, module in modules.items():
        for own, parameter in module.named_parameters(recurse=False):
            alone = holders[id(parameter)] == 1  # else no module sees all of its gradient
            # A variant of LoRA may call its layers on more than the batch (DoRA) or on some of its rows (aLoRA).
            elsewhere = PROMPT in path.split(".") or path.startswith(tuple(strange))
            kind = kind_of(module) if own == "weight" and alone and not elsewhere else None
            name = canonical(path if kind is not None else f"{path}.{own}".removeprefix("."))
            found[name] = Part(module, own, kind, _chain(path, modules))
    return found


def _chain(path: str, modules: Mapping[str, nn.Module]) -> str:
    """What the layers of one adapter of one module have in common: the module, and the adapter's name in PEFT's."""
    parent, _, leaf = path.rpartition(".")
    owner = next((p for p in _above(path) if hasattr(modules[p], "base_layer")), parent)
    return f"{owner}:{leaf if isinstance(modules[parent], nn.ModuleDict) else ''}"


def _above(path: str) -> Iterator[str]:
    """The paths of the modules around one, the innermost first."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def sizes_of(parts: Mapping[str, Part], *, flat: bool) -> dict[str, LayerSize]:
    """What statistics need to know of each part; `flat`: all of them as (1, n)."""
    if flat:
        return {name: LayerSize(1, part.tensor.numel()) for name, part in parts.items()}
    return {name: LayerSize(*part.size, indexed=part.indexed, chain=part.chain) for name, part in parts.items()}


def frozen_under(model: nn.Module, parts: Mapping[str, Part]) -> dict[str, Part]:
    """Layer name -> the base model's weight that the parts were measured on, each weight once."""
    trained = {id(part.module) for part in parts.values()}
    layers = {name: part for name, part in parts_in(model, "weights").items() if id(part.module) not in trained}
    once = {id(part.tensor): name for name, part in reversed(layers.items())}
    return {name: layers[name] for name in reversed(once.values())}


def _check_adapter(model: nn.Module) -> None:
    flags = [parameter.requires_grad for parameter in model.parameters()]
    if all(flags) and not hasattr(model, "peft_config"):
        raise HoldfastError(
            "space='adapter' measures what is trained, and this model has no adapter: nothing in it is frozen",
            remedy="wrap it with peft.get_peft_model first, freeze its base, or measure space='weights'",
        )
    unchosen = [name for name, module in model.named_modules() if getattr(module, "chosen", True) is False]
    if unchosen:
        raise HoldfastError(
            f"space='adapter' measures what is trained, and {len(unchosen)} tensors' entries are not chosen yet: "
            f"{', '.join(map(canonical, unchosen[:3]))}",
            remedy="choose them first: holdfast.sift.selection.select(model, batches)",
        )
    if not any(flags):
        raise HoldfastError(
            "space='adapter' measures what is trained, and no parameter of this model is",
            causes=["the adapter is switched off", "it was loaded for inference (is_trainable=False)"],
            remedy="make the adapter trainable: PeftModel.from_pretrained(..., is_trainable=True)",
        )
