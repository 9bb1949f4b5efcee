"""Models that call their layers in ways of their own: by keyword, now together and now apart, now and then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import initialised
from laws import same
from networks import logits_and_labels
from sometimes import Two, apart, batches, by_keyword, experts, hidden_sometimes, sometimes_apart, together
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.measuring.accumulation import groups_together
from holdfast.measuring.measurement import Watch
from holdfast.statistics import GradientsHiddenError, InputsDivergedError


def anchor_of(how: Callable[[Two, Tensor], Tensor], source: Any = None, **options: Any) -> Anchor:
    """The data's own labels: the way a layer is called draws nothing."""
    options = {
        "targets": "all-linear",
        "forward_loss": logits_and_labels,
        "fisher": "data",
        "progress": False,
    } | options
    return Anchor.estimate(initialised(Two(how)), batches() if source is None else source, **options)


@pytest.mark.parametrize("kind", ["kronecker", "diagonal", "eigen", "samples"])
@pytest.mark.parametrize("how", [apart, by_keyword, sometimes_apart])
def test_the_way_of_calling_changes_nothing(how: Any, kind: str) -> None:
    same(anchor_of(how, curvature=kind), anchor_of(together, curvature=kind))


@pytest.mark.parametrize("until", [None, 1e-9])
@pytest.mark.filterwarnings("ignore:the source ended")
def test_layers_that_part_later_are_measured_again_from_the_start(until: float | None) -> None:
    read = []

    class Read(list):
        def __iter__(self) -> Any:
            for number, batch in enumerate(super().__iter__()):
                read.append(number)
                yield batch

    same(anchor_of(sometimes_apart, Read(batches()), until=until), anchor_of(together))
    assert read == [0, 1, 2, 3, 0, 1, 2, 3, 4]


def test_a_generator_can_not_be_read_again() -> None:
    with pytest.raises(HoldfastError, match="read only once"):
        anchor_of(sometimes_apart, iter(batches()))
    first_apart = batches()[3:] + batches()[:3]
    same(anchor_of(sometimes_apart, iter(first_apart)), anchor_of(together, first_apart))  # seen at once


def test_layers_that_run_without_gradients_later_are_refused_by_name() -> None:
    with pytest.raises(HoldfastError, match="'left' runs without gradients"):
        anchor_of(hidden_sometimes)


@pytest.mark.parametrize("kind", ["kronecker", "samples", "tracekron"])
@pytest.mark.filterwarnings("ignore:the source ended")
def test_layers_that_some_batches_never_reach_share_all_the_same(kind: str) -> None:
    anchor, halves = anchor_of(experts, curvature=kind), anchor_of(experts, curvature=kind, until=1e-9)
    same(halves, anchor)
    reached = [batch for batch in batches() if float(batch["x"][0, 0]) > 0]
    alone = anchor_of(experts, reached, curvature=kind)
    for layer in ("left", "right"):
        one, other = (a.curvatures[layer].apply(torch.eye(4, dtype=torch.float64)) for a in (anchor, alone))
        assert_close(one * anchor.items, other * alone.items, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seen", ["both halves", "one half"])
def test_halves_share_though_one_never_reached_them(seen: str) -> None:
    source = batches() if seen == "both halves" else [batches()[i] for i in (0, 1, 2, 4)]
    with pytest.warns(
        UserWarning, match=r"agree" if seen == "both halves" else r"they agree to 0\.[4-9]|they agree to 1"
    ):
        anchor = anchor_of(experts, source, until=1e-9)
    tensors = [anchor.curvatures[layer].tensors()["inputs.full"] for layer in ("left", "right")]
    assert tensors[0].data_ptr() == tensors[1].data_ptr()


def test_a_call_without_a_tensor_is_refused_by_name() -> None:
    class Odd(nn.Linear):
        def forward(self, inputs: Any) -> Tensor:  # type: ignore[override]
            return super().forward(inputs["x"])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.odd({"x": x})

    options: dict[str, Any] = {"forward_loss": logits_and_labels, "progress": False}
    with pytest.raises(HoldfastError, match="'odd' was called without a tensor"):
        Anchor.estimate(Model().double(), batches(), **options)


def test_what_is_seen_of_sharing_is_put_together() -> None:
    assert groups_together([{"q": "q", "k": "q"}, {"up": "up"}, {"k": "q"}]) == {"q": "q", "k": "q", "up": "up"}
    assert groups_together([{"q": "q", "k": "q"}, {"k": "k"}]) is None
    assert groups_together([]) == {}


def test_there_is_no_third_way_to_watch() -> None:
    assert Watch(groups={"q": "q"}).after(InputsDivergedError("q")) == Watch(share=False)
    stems = Watch().after(GradientsHiddenError("q"))
    assert stems == Watch(stems=True)
    with pytest.raises(HoldfastError, match=r"^q"):
        stems.after(GradientsHiddenError("q"))
