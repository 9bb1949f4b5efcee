"""Embeddings whose forward is their own: they scale what they look up, or shift their indices."""

from typing import Any

import pytest
import torch
from architectures import initialised
from networks import NETWORKS, VOCABULARY, logits_and_labels
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.layers import is_embedding, kind_of, require_kind
from holdfast.statistics import Recorder
from holdfast.targets import select

OWN = [
    Gemma3TextScaledWordEmbedding(VOCABULARY, 4, 0, embed_scale=2.0),
    BartScaledWordEmbedding(VOCABULARY, 4, 0, embed_scale=2.0),
    BartLearnedPositionalEmbedding(VOCABULARY, 4),
    OPTLearnedPositionalEmbedding(VOCABULARY, 4),
]


class Renamed(nn.Embedding):
    """Another name, and nothing of its own."""


class Scaled(nn.Module):
    """A scaled embedding and a head on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = Gemma3TextScaledWordEmbedding(VOCABULARY, 4, 0, embed_scale=2.0), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


@pytest.mark.parametrize("module", OWN, ids=lambda module: type(module).__name__)
def test_they_are_no_layers(module: Any) -> None:
    assert kind_of(module) is None
    for refuse in (lambda: require_kind("embed", module), lambda: Recorder({"embed": module}, {"embed": {}})):
        with pytest.raises(HoldfastError, match=rf"'embed' is a {type(module).__name__}, .* forward is its own"):
            refuse()


@pytest.mark.parametrize("module", [nn.Embedding(5, 4), Renamed(5, 4)])
def test_a_subclass_that_looks_up_as_its_class_does_is_one(module: Any) -> None:
    assert is_embedding(require_kind("embed", module))


def test_a_forward_that_is_wrapped_in_place_is_still_the_class_own() -> None:
    """As accelerate's hooks do."""
    module: Any = nn.Embedding(5, 4)
    module.forward = module.forward
    assert is_embedding(require_kind("embed", module))


def test_patterns_skip_them_and_names_are_refused() -> None:
    model, network = initialised(Scaled()), NETWORKS["embedding"]
    with pytest.raises(HoldfastError, match="match no layer"):
        select(model, ["embed"])
    anchor = Anchor.estimate(
        model, network.batches(2), targets=".*", forward_loss=logits_and_labels, curvature="diagonal", progress=False
    )
    assert list(anchor.curvatures) == ["head"]
