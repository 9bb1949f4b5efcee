"""The interface of our adapters' layers: a transformer layer beside whose residual stream blocks are trained."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from holdfast.adapters.padding import valid_positions
from holdfast.adapters.placement import Site
from holdfast.adapters.site import Around, first_tensor, with_first
from holdfast.adapters.transparent import Transparent
from holdfast.errors import HoldfastError

AFTER = "layer"  # the block that stands after the whole layer
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
CACHES = ("past_key_values", "past_key_value", "layer_past")


class AdaptedLayer(Transparent, BaseTunerLayer):
    """A layer of any signature around which adapters' blocks add to the residual stream.

    Everything that the layer takes and gives passes through as it is. The layer's hooks (by which transformers records
    hidden states) are this module's too: they see what the adapters added.

    Args:
        base_layer: takes hidden states (batch, time, width) first, gives them first. A convolution over time, with
            (batch, width, time), will do as well.
    """

    adapter_layer_names: tuple[str, ...]
    other_param_names = ()
    in_time: ClassVar[bool]  # whether a block mixes positions, and so needs to know of padding and of the past

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for hooks in HOOKS:
            setattr(self, hooks, getattr(base_layer, hooks))
        self.channels_first = isinstance(base_layer, nn.Conv1d | nn.ConvTranspose1d)
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())
        self.sites: dict[str, Site] = {}  # where a block that is called so stands
        self.beside: set[str] = set()  # of those, what takes the sublayer's input
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter: list[str] = []
        self._valid: Tensor | None = None
        self._shape: torch.Size | None = None
        self._inputs: dict[str, Tensor] = {}

    @abstractmethod
    def branch(self, block: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
        """What a block adds: (batch, time, width) -> the same, with (batch, time) bool of real positions."""

    @property
    def blocks(self) -> nn.ModuleDict:
        """Adapter -> place -> block."""
        return getattr(self, self.adapter_layer_names[0])

    def add(self, adapter: str, blocks: dict[str, nn.Module], sites: dict[str, Site], beside: set[str]) -> None:
        """Take an adapter on.

        Args:
            adapter: its name.
            blocks: place -> block; "layer" is after the whole layer.
            sites: place -> where it is, for all others.
            beside: places whose blocks take the sublayer's input rather than its output.
        """
        self.blocks[adapter] = nn.ModuleDict(blocks)
        self.sites.update(sites)
        self.beside |= beside
        for site in sites.values():
            for name in {site.entry, site.exit}:
                child = self.base_layer.get_submodule(name)
                if not isinstance(child, Around):
                    parent, _, leaf = name.rpartition(".")
                    setattr(self.base_layer.get_submodule(parent), leaf, Around(child, name, self._seen, self._added))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer does, and what the adapters add.

        Raises:
            HoldfastError: a cache that holds earlier positions, for blocks that would need those too.
        """
        if not self._running():
            return self.base_layer.forward(*args, **kwargs)
        hidden = first_tensor(args, kwargs)
        valid = None
        if self.in_time:
            given = named(self.base_layer, args, kwargs)
            self._refuse_past(given)
            if not self.channels_first and hidden.dim() == 3:
                valid = valid_positions(given, *hidden.shape[:2])
        run = partial(self._run, valid, hidden.shape)
        base: Any = self.base_layer
        if base.training and base.__dict__.get("gradient_checkpointing", False):
            return self._checkpointed(run, base, args, kwargs)
        return run(*args, **kwargs)

    def _checkpointed(self, run: Callable[..., Any], base: Any, args: Any, kwargs: Any) -> Any:
        """The layer and its adapters as one checkpoint, in place of the layer's own.

        Reentrant checkpoints give gradients only if an input needs one, which nothing does below the first adapter;
        so the hidden states are made to. The padding goes with the call: it is run again during the backward pass.
        """
        if not args and "hidden_states" in kwargs:  # reentrant checkpoints look at positional arguments only
            args = (kwargs.pop("hidden_states"),)
        if args and torch.is_grad_enabled() and not args[0].requires_grad and args[0].is_floating_point():
            args = (args[0].detach().requires_grad_(), *args[1:])
        for name in CACHES:  # run twice, a layer would be written to it twice
            if kwargs.get(name) is not None:
                kwargs[name] = None
        if kwargs.get("use_cache"):
            kwargs["use_cache"] = False

        # Reentrant checkpoints also look away from keywords: WavLM's position bias would send the backward pass in
        # circles, and an encoder's states would get no gradient.
        names = [name for name, value in kwargs.items() if isinstance(value, Tensor) and value.requires_grad]
        tensors = [kwargs.pop(name) for name in names]

        def once(*given: Any) -> Any:
            base.gradient_checkpointing = False
            try:
                return run(*given[: len(args)], **dict(zip(names, given[len(args) :], strict=True)), **kwargs)
            finally:
                base.gradient_checkpointing = True

        return base._gradient_checkpointing_func(once, *args, *tensors)

    def _run(self, valid: Tensor | None, shape: torch.Size, *args: Any, **kwargs: Any) -> Any:
        self._valid, self._shape = valid, shape
        try:
            return with_first(self.base_layer.forward(*args, **kwargs), self._after)
        finally:
            self._valid = self._shape = None
            self._inputs.clear()

    def _after(self, x: Tensor) -> Tensor:
        for block in self._blocks_at(AFTER):
            x = x + self._branch(block, x, x)
        return x

    def _seen(self, name: str, x: Tensor) -> None:
        if any(self.sites[place].entry == name for place in self.beside):
            self._inputs[name] = x

    def _added(self, name: str, x: Tensor) -> Tensor:
        for place, site in self.sites.items():
            if site.exit == name:
                source = self._inputs[site.entry] if place in self.beside and self._blocks_at(place) else x
                for block in self._blocks_at(place):
                    x = x + self._branch(block, source if place in self.beside else x, x)
        return x

    def _branch(self, block: nn.Module, source: Tensor, like: Tensor) -> Tensor:
        """What a block adds, in the form and dtype of the stream, computed in the block's own dtype."""
        x = source.to(next(block.parameters()).dtype)
        if self.channels_first:
            return self.branch(block, x.transpose(1, 2), None).transpose(1, 2).to(like.dtype)
        if x.dim() == 2 and self._shape is not None and len(self._shape) == 3:  # OPT's rows
            x = x.view(*self._shape[:2], -1)
        return self.branch(block, x, self._valid).reshape(like.shape).to(like.dtype)

    def _blocks_at(self, place: str) -> list[nn.Module]:
        if self._disable_adapters or self._shape is None:
            return []
        return [self.blocks[a][place] for a in self.active_adapters if a in self.blocks and place in self.blocks[a]]  # type: ignore[index, operator]

    def _running(self) -> bool:
        return not self._disable_adapters and any(adapter in self.blocks for adapter in self.active_adapters)

    def _refuse_past(self, given: dict[str, Any]) -> None:
        number = next((m.layer_idx for m in self.base_layer.modules() if hasattr(m, "layer_idx")), None)
        for cache in (given.get(name) for name in CACHES):
            length = getattr(cache, "get_seq_length", None)
            if length is not None and int(length(number or 0)) > 0:
                raise HoldfastError(
                    "a ConvAdapter is given one position with the earlier ones in a cache, which does not hold what "
                    "its convolutions need",
                    wanted="whole sequences",
                    causes=["use_cache=True was given to the model or to generate"],
                    remedy="leave use_cache out (it was turned off in the model's configuration), or set it to False",
                )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            HoldfastError: always.
        """
        raise no_merging()

    def unmerge(self) -> None:
        """Nothing was merged."""

    def unload_and_optionally_merge_module(self, merge: bool, safe_merge: bool, adapter_names: Any) -> nn.Module:
        """The bare layer; PEFT calls this to unload."""
        if merge:
            raise no_merging()
        for name, module in list(self.base_layer.named_modules()):
            if isinstance(module, Around):
                parent, _, leaf = name.rpartition(".")
                setattr(self.base_layer.get_submodule(parent), leaf, module.base_layer)
        return self.base_layer


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names of its parameters."""
    names = [n for n, p in signature(module.forward).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return dict(zip(names, args, strict=False)) | kwargs


def no_merging() -> HoldfastError:
    """The error for putting into a weight what is no linear map of its input."""
    return HoldfastError(
        "this adapter can't be merged: it is not linear, so no weight of the model can do what it does",
        remedy="keep it as an adapter (save_pretrained), or use LoRA where one plain model is needed",
    )
