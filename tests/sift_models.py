"""Small models with SIFT adapters, in float64, and batches for them."""

import torch
from architectures import initialised
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast.sift import SiftConfig

VOCABULARY = 23


def llama():
    """Two layers; the output layer shares the embedding's tensor."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True, attention_dropout=0.3,
    )  # fmt: skip
    return initialised(LlamaForCausalLM(config))


def sifted(base=None, adapter="default", **options):
    """A model with a SIFT adapter, in training mode."""
    options = options if "count" in options else {"density": 0.1} | options
    return get_peft_model(base or llama(), SiftConfig(**options), adapter).train()


def token_batches(count=3, size=2, length=7, seed=0):
    """Sequences of which the first few labels are left out, another number in each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count * size, length), generator=generator)
    labels = ids.clone()
    for row, left in enumerate(labels):
        left[: row % 4] = -100
    return [{"input_ids": ids[i : i + size], "labels": labels[i : i + size]} for i in range(0, count * size, size)]


def cut(batches, size):
    """The same sequences in batches of another size."""
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return [{n: t[i : i + size] for n, t in whole.items()} for i in range(0, len(whole["input_ids"]), size)]
