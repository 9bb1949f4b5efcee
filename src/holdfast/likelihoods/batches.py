"""What a transformers model's batch tells before any forward pass: inputs, labels, masks, frames."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.likelihoods.likelihood import IGNORED, unlabelled

INPUTS = ("input_ids", "input_values", "input_features", "pixel_values", "inputs_embeds")
PER_POSITION = ("ForTokenClassification", "ForMaskedLM")  # transformers' names of losses with a label per position
SHIFTED = ("ForCausalLM", "ForConditionalGeneration")  # and of those whose labels are shifted


def scored_mask(batch: Mapping[str, Tensor], *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Labels (batch, length) as the logits' positions predict them, and the positions that reach a scored one.

    Without "labels", a causal model's own inputs are its labels, padding left out.
    """
    labels = batch.get("labels")
    mask = batch.get("attention_mask")
    if labels is None:
        if "input_ids" not in batch:
            raise unlabelled()
        labels = batch["input_ids"]
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
    if shifted:  # position t predicts label t + 1; the last predicts nothing
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if mask is not None:  # padding on the left would predict the first token; padding on the right never does
            labels = labels.masked_fill(mask == 0, IGNORED)
        # t reaches the loss at every s >= t: a reversed cumulative "any".
        reaches = (labels != IGNORED).flip(1).cummax(dim=1).values.flip(1)
    else:
        reaches = (labels != IGNORED).any(dim=1, keepdim=True).expand_as(labels)
    positions = reaches if mask is None or mask.shape != reaches.shape else reaches & (mask != 0)
    return labels, positions


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without labels: what the model's forward is called with."""
    return {name: value for name, value in batch.items() if name != "labels"}


def main_input(model: nn.Module, batch: Mapping[str, Tensor]) -> str | None:
    """The name of the tensor that holds the inputs themselves: (batch, ...)."""
    own = str(getattr(bare(model), "main_input_name", INPUTS[0]))
    return next((name for name in (own, *INPUTS) if name in batch), None)


def bare(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrapper."""
    get = getattr(model, "get_base_model", None)
    return get() if get is not None else model


def is_causal(model: nn.Module) -> bool:
    """Whether the model's own loss shifts labels by one position: what has only a decoder, with images or without."""
    model = bare(model)
    loss_type = getattr(model, "loss_type", None)
    if loss_type is not None:
        config: Any = getattr(model, "config", None)
        return _shifts_labels(loss_type) and not getattr(config, "is_encoder_decoder", False)
    embeddings = getattr(model, "get_output_embeddings", None)
    return not is_ctc(model) and embeddings is not None and embeddings() is not None


def _shifts_labels(loss_type: str) -> bool:
    """Whether transformers' loss of that name is that of causal language models."""
    try:
        from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
    except ImportError:  # not a public module: it may move
        return loss_type in SHIFTED
    return LOSS_MAPPING.get(loss_type) is ForCausalLMLoss


def is_ctc(model: nn.Module) -> bool:
    """Whether it is one of transformers' speech recognisers with a CTC head."""
    return "ForCTC" in type(bare(model)).__name__


def is_sequence_to_sequence(model: nn.Module) -> bool:
    """Whether it writes with a decoder what it reads with an encoder: two lengths in one batch."""
    model = bare(model)
    config: Any = getattr(model, "config", None)
    embeddings = getattr(model, "get_output_embeddings", lambda: None)
    return bool(getattr(config, "is_encoder_decoder", False)) and embeddings() is not None


def is_headless(model: nn.Module) -> bool:
    """Whether it is one of transformers' encoders without a head, which returns hidden states."""
    model = bare(model)
    inner: Any = getattr(model, "base_model", None)  # a model with a head names the model inside it here
    return inner is model and not is_causal(model) and not is_ctc(model)


def has_labels_per_position(model: nn.Module) -> bool:
    """Whether the model's own loss takes a label for each position."""
    return is_causal(model) or getattr(bare(model), "loss_type", None) in PER_POSITION


def is_example_labels(labels: Tensor) -> bool:
    """Whether each input has one label, or one vector of numbers."""
    return labels.dim() == 1 or labels.is_floating_point()


def problem_type(model: nn.Module, labels: Tensor | None) -> str:
    """What the labels of examples are, as transformers itself reads them: its names."""
    config: Any = bare(model).config
    if config.problem_type is not None:
        return str(config.problem_type)
    if config.num_labels == 1:
        return "regression"
    classes = labels is None or not labels.is_floating_point()
    return "single_label_classification" if classes else "multi_label_classification"


def numbers(labels: Tensor) -> Tensor:
    """Labels of a regression as floats, NaN where an integer says that nothing is scored."""
    return labels if labels.is_floating_point() else labels.float().masked_fill(labels == IGNORED, float("nan"))


def scored_examples(model: nn.Module, labels: Tensor) -> Tensor:
    """(batch,) examples with a label that is not missing: NaN in a regression, else -100."""
    regression = problem_type(model, labels) == "regression"
    present = ~numbers(labels).isnan() if regression else labels != IGNORED
    return present.reshape(len(labels), -1).any(dim=1)


def frames_of(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int] | None:
    """(batch,) real frames of each recording behind the model's feature extractor, and all with padding.

    None where the model has no such extractor. Without "attention_mask" nothing is padding.
    """
    module: Any = bare(model)
    length = getattr(module, "_get_feat_extract_output_lengths", None)
    length = length or getattr(module, "_get_subsampling_output_length", None)
    name = main_input(model, batch)
    if length is None or name is None:
        return None
    inputs, mask = batch[name], batch.get("attention_mask")
    whole = torch.full((len(inputs),), inputs.shape[1], device=inputs.device)
    real = whole if mask is None else mask.sum(dim=1)
    return length(real).long(), int(length(whole).max())


def attended_positions(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """(batch, positions) of the hidden states that are no padding; None where the batch has no mask."""
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    framed = frames_of(model, batch)
    if framed is None:
        return mask != 0
    frames, longest = framed
    return torch.arange(longest, device=frames.device) < frames[:, None]
