"""What a ConvAdapter trains, as PEFT's configuration."""

from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig

from holdfast.adapters.activations import known_activation
from holdfast.adapters.checks import at_least, one_of, scaled, share
from holdfast.adapters.registration import peft_type
from holdfast.errors import HoldfastError

Preset = Literal["recommended", "paper"]
Groups = Literal["grouped", "depthwise-separable", "dense"]
Norm = Literal["layer", "rms", "none"]
Pool = Literal["mean", "running", "attention"]
Start = Literal["zero", "torch", "official_hf"]
ConvPosition = Literal["layer", "attention", "feed_forward", "parallel"]


@dataclass
class ConvAdapterConfig(PeftConfig):
    """Convolutions over time and a squeeze-and-excitation gate beside each transformer layer's residual stream.

        h + s SE(conv_3(conv_2(relu(conv_1(norm(h))))))          (SURE, arXiv 2303.03267, as its code has it)

    Args:
        target_modules: the transformer layers: a regular expression over whole names, or a list of name endings.
            None finds them; any module whose output is (batch, time, width) will do, and any convolution over time.
        exclude_modules: PEFT's grammar, taken out of the targets.
        layers_to_transform: only layers of these numbers, the last number in their names.
        modules_to_save: trained densely and saved beside the adapter, such as a new head.
        preset: "paper" is SURE's block to the last number, with its random start and its convolutions over padding;
            "recommended" starts as the identity and sees no padding. What is given beside it counts more.
        hidden: channels inside, None for half the width.
        kernels: of the convolutions, in order; two at least.
        groups: "grouped" (each channel its own neighbours only), "depthwise-separable" (over time channel by channel,
            then across channels), or "dense".
        activation: after the first convolution; a name that transformers knows.
        norm: before the first convolution.
        se_reduction: width / se_reduction channels inside the gate; None for no gate.
        se_pool: what the gate sees: the mean over time, the mean so far, or an average with learned weights.
        causal: None for the model's own way: on in the layers of a causal decoder. Off is refused there, for it would
            show the future to the model. Causal convolutions see the past only, and the gate the mean so far.
        dilation: of the convolutions.
        dropout: on what is added.
        scale: a number, or "learned" (one number for each block, zero at the start if `init` is "zero").
        init: "zero" (adds nothing at the start), "torch" (its own rules), "official_hf" (what loading SURE's code
            through transformers does: Kaiming for convolutions, N(0, 0.02^2) for linear layers); None for the
            preset's: "zero" or "official_hf".
        mixing: channels inside a pair of 1x1 convolutions that mix all channels, after the others; None for none.
        biases: of the convolutions and of the gate.
        shared: one block for all layers.
        position: "layer" (after the whole layer), "attention" or "feed_forward" (on what that sublayer adds), or
            "parallel" (beside the feed-forward sublayer).
        masked: padding is set to zero before every convolution and left out of the gate's mean; None for the
            preset's: True or False. Padding is known where the target is given the mask, as transformer layers are; a
            linear layer or a convolution that is named itself is not, and everything counts as real there.

    Sequences that are packed into one row, and told apart by their positions or a mask over pairs only, are one
    sequence to the convolutions and the gate.

    Raises:
        HoldfastError: a value outside its range.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    preset: Preset = "recommended"
    hidden: int | None = None
    kernels: tuple[int, ...] = (3, 5, 3)
    groups: Groups = "grouped"
    activation: str = "relu"
    norm: Norm = "layer"
    se_reduction: int | None = 16
    se_pool: Pool = "mean"
    causal: bool | None = None
    dilation: int = 1
    dropout: float = 0.0
    scale: float | str = 1.0
    init: Start | None = None
    mixing: int | None = None
    biases: bool = False
    shared: bool = False
    position: ConvPosition = "layer"
    masked: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("CONVADAPTER")
        one_of("preset", self.preset, Preset)
        careful = self.preset == Preset.__args__[0]  # type: ignore[attr-defined]
        if self.init is None:
            self.init = "zero" if careful else "official_hf"
        if self.masked is None:
            self.masked = careful
        self.kernels = tuple(self.kernels)  # JSON has lists only
        for name, value, literal in (
            ("groups", self.groups, Groups),
            ("norm", self.norm, Norm),
            ("se_pool", self.se_pool, Pool),
            ("init", self.init, Start),
            ("position", self.position, ConvPosition),
        ):
            one_of(name, value, literal)
        for name in ("hidden", "se_reduction", "dilation", "mixing"):
            at_least(name, getattr(self, name), 1)
        if len(self.kernels) < 2:
            raise HoldfastError(f"kernels={self.kernels}", wanted="two convolutions at least: one in and one out")
        for kernel in self.kernels:
            at_least("a kernel", kernel, 1)
        share("dropout", self.dropout)
        scaled(self.scale)
        known_activation(self.activation)
        if self.causal and self.se_reduction and self.se_pool == "attention":
            raise no_causal_attention()


def no_causal_attention() -> HoldfastError:
    """The error for a gate that would weigh the whole sequence where only the past may be seen."""
    return HoldfastError(
        "se_pool='attention' weighs the whole sequence, which a causal layer must not see",
        remedy="use se_pool='running' or 'mean' (which becomes 'running' there), or se_reduction=None",
    )
