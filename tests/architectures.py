"""The tiny models of the table, in float64."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 13


def initialised(model: nn.Module) -> nn.Module:
    """Weights of order one: at a pre-trained model's initialisation scale the laws would hold by smallness."""
    generator = torch.Generator().manual_seed(1)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + noise * (0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
    return model


def mlp() -> nn.Module:
    """Three layers, two non-linearities."""
    return initialised(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))


class Convolutions(nn.Module):
    """Two convolutions, mean over positions, a linear head."""

    def __init__(self, first: nn.Module, second: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def forward(self, x: Tensor) -> Tensor:
        features = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(features.flatten(2).mean(dim=2))


def convolution_1d() -> nn.Module:
    """Padding and stride over time."""
    first, second = nn.Conv1d(2, 4, 3, padding=1, stride=2), nn.Conv1d(4, 3, 2, padding="same")
    return initialised(Convolutions(first, second, nn.Linear(3, 4)))


def convolution_2d() -> nn.Module:
    """Unequal kernel, stride and padding."""
    first, second = nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(1, 2)), nn.Conv2d(3, 4, 3, padding=1)
    return initialised(Convolutions(first, second, nn.Linear(4, 3)))


def dilated() -> nn.Module:
    """Dilation and a circular border."""
    first = nn.Conv2d(2, 3, (3, 2), dilation=(1, 2), padding="same")
    second = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    return initialised(Convolutions(first, second, nn.Linear(4, 3)))


class Twice(nn.Module):
    """One layer used twice in a forward pass, the second time beside another that is given the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.beside, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(x))
        return self.head(torch.tanh(self.shared(x)) * self.beside(x))


class Lookup(nn.Module):
    """An embedding and a head on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


class Checkpointed(nn.Module):
    """A stem that no target names, a block whose activations may be computed twice, and a head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Linear(5, 4)
        self.block = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = self.block(x) if self.how == "plain" else checkpoint(self.block, x, use_reentrant=self.how == "reentrant")
        return self.head(torch.tanh(self.block[0](x)))  # used again outside: counting it twice inside would show


def checkpointed(how: str) -> nn.Module:
    """The same weights for each way of checkpointing."""
    return initialised(Checkpointed(how))


def llama() -> PreTrainedModel:
    """Grouped queries, gated MLP, rotary positions."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name, module in list(model.named_modules()):  # transformers' own norm computes in float32
        if type(module).__name__ == "LlamaRMSNorm":
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.RMSNorm(8, eps=1e-5))
    return initialised(model)


def gpt2() -> PreTrainedModel:
    """Conv1D layers, which store the transposed weight."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_inner=12,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    return initialised(GPT2LMHeadModel(config))


def bert(head: type[PreTrainedModel]) -> PreTrainedModel:
    """An encoder: every position sees every other."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=32,
        num_labels=3,
        pad_token_id=1,
    )
    return initialised(head(config))
