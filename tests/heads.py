"""Tiny transformers models with every head that Holdfast reads, in float64, and their source data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from architectures import VOCABULARY, bert, initialised, llama
from networks import IGNORED
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)

Row = dict[str, Tensor]
LORA = {"r": 2, "lora_alpha": 3}
ENCODER = LoraConfig(target_modules=["query", "value"], **LORA)
SPEECH = LoraConfig(target_modules=["q_proj", "v_proj"], **LORA)
TEXT = TaskType.CAUSAL_LM


@dataclass(frozen=True)
class Head:
    """A model without adapters, the adapters for it, and inputs of several lengths where it takes them."""

    build: Callable[[], nn.Module]
    adapter: PeftConfig
    rows: list[Row]
    kind: str  # of the likelihood
    item: str

    def adapted(self) -> nn.Module:
        """A fresh model with a fresh adapter."""
        torch.manual_seed(0)
        return get_peft_model(self.build(), self.adapter).double().eval()

    def batch(self, rows: list[Row] | None = None, extra: int = 0) -> Row:
        """All rows as one batch, padded on the right by `extra` more than they need."""
        return together(self.rows if rows is None else rows, extra)


def together(rows: list[Row], extra: int = 0) -> Row:
    """One batch; the mask says what is padding, where rows have a length."""
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        length = name in ("input_ids", "input_values") or (name == "labels" and values[0].dim() == 1)
        if not length or (values[0].is_floating_point() and name == "labels"):
            batch[name] = torch.stack(values)
            continue
        blank = torch.zeros(max(map(len, values)) + extra, dtype=values[0].dtype)
        filler = IGNORED if name == "labels" else 0
        batch[name] = pad_sequence([*values, blank], batch_first=True, padding_value=filler)[:-1]
        if name != "labels":
            ones = [torch.ones(len(value), dtype=torch.long) for value in values]
            batch["attention_mask"] = pad_sequence([*ones, blank.long()], batch_first=True)[:-1]
    return batch


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _text(label: Callable[[Tensor, torch.Generator], Tensor] | None = None) -> list[Row]:
    rows = []
    for seed, length in enumerate((5, 3, 6, 4)):
        generator = _generator(seed)
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
        rows.append({"input_ids": ids} | ({} if label is None else {"labels": label(ids, generator)}))
    return rows


def _speech(label: Callable[[torch.Generator], Tensor]) -> list[Row]:
    rows = []
    for seed, length in enumerate((90, 60, 120)):
        generator = _generator(seed)
        sound = torch.randn(length, generator=generator, dtype=torch.float64)
        rows.append({"input_values": sound, "labels": label(generator)})
    return rows


def _images() -> list[Row]:
    drawn = [torch.randn(2, 8, 8, generator=_generator(seed), dtype=torch.float64) for seed in range(4)]
    return [{"pixel_values": image, "labels": torch.tensor(number % 3)} for number, image in enumerate(drawn)]


def _bert_with(**settings: Any) -> nn.Module:
    model = bert(BertForSequenceClassification)
    settings = {"num_labels": 3} | settings
    config = type(model.config)(**{**model.config.to_dict(), "id2label": None, "label2id": None, **settings})
    return initialised(BertForSequenceClassification(config))


def wav2vec2(head: type) -> nn.Module:
    """Two convolutions with layer norms, so that padding is masked; one layer of attention."""
    config = Wav2Vec2Config(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        conv_dim=(4, 4),
        conv_kernel=(5, 3),
        conv_stride=(4, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=3,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        classifier_proj_size=6,
        num_labels=3,
        pad_token_id=0,
        apply_spec_augment=False,
    )
    return initialised(head(config))


def vit() -> nn.Module:
    """Four patches and one layer."""
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_channels=2,
        num_labels=3,
    )
    return initialised(ViTForImageClassification(config))


def _number(ids: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn((), generator=generator, dtype=torch.float64)


def _several(ids: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (3,), generator=generator).double()


def _transcript(generator: torch.Generator) -> Tensor:
    return torch.randint(1, 5, (int(torch.randint(1, 4, (), generator=generator)),), generator=generator)


_CAUSAL = {"build": llama, "rows": _text(), "kind": "Categorical", "item": "token"}
_LABEL = {"rows": _text(lambda ids, _: ids[0] % 3), "kind": "Categorical", "item": "example"}
HEADS = {
    "llama": Head(adapter=LoraConfig(target_modules="all-linear", task_type=TEXT, **LORA), **_CAUSAL),
    "llama-prefix": Head(adapter=PrefixTuningConfig(num_virtual_tokens=2, task_type=TEXT), **_CAUSAL),
    "llama-prompt": Head(adapter=PromptTuningConfig(num_virtual_tokens=2, task_type=TEXT), **_CAUSAL),
    "llama-ia3": Head(
        adapter=IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        **_CAUSAL,
    ),
    "bert-sequence": Head(partial(bert, BertForSequenceClassification), ENCODER, **_LABEL),
    "bert-tokens": Head(
        partial(bert, BertForTokenClassification), ENCODER, _text(lambda ids, _: ids % 3), "Categorical", "token"
    ),
    "bert-regression": Head(partial(_bert_with, num_labels=1), ENCODER, _text(_number), "Gaussian", "example"),
    "bert-several": Head(
        partial(_bert_with, problem_type="multi_label_classification"),
        ENCODER,
        _text(_several),
        "Bernoulli",
        "example",
    ),
    "vit": Head(vit, LoraConfig(target_modules=["q_proj", "v_proj"], **LORA), _images(), "Categorical", "example"),
    "wav2vec2-ctc": Head(partial(wav2vec2, Wav2Vec2ForCTC), SPEECH, _speech(_transcript), "CTC", "utterance"),
    "wav2vec2-sequence": Head(
        partial(wav2vec2, Wav2Vec2ForSequenceClassification),
        SPEECH,
        _speech(lambda generator: torch.randint(3, (), generator=generator)),
        "Categorical",
        "example",
    ),
    "bert-encoder": Head(partial(bert, BertModel), ENCODER, _text(), "Features", "position"),
}
WITH_LIKELIHOOD = {name: head for name, head in HEADS.items() if head.kind != "Features"}
