"""A measurement that was stopped goes on where it was, and gives the anchor of one that was not."""

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laws import same
from networks import NETWORKS, Batch, Network
from stopped import SAME, Source, anchor_of
from torch import nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.measuring import resuming
from holdfast.measuring.resuming import Deferred

MEASURED = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
PASSES = {kind: 1 if catalogue.curvature(kind).after is None else 2 for kind in MEASURED}


def resumed(network: Network, after: int, folder: Path, size: int = 1, **options: Any) -> Anchor:
    """Stopped after so many batches, then asked for again."""
    batches = network.batches(size)
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Source(batches, after), checkpoint=folder, **options)
    assert list(folder.iterdir())
    return anchor_of(network, Source(batches), checkpoint=folder, **options)


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("name", ["llama", "mlp", "twice"])
def test_an_interrupted_measurement_goes_on(kind: str, name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    wanted = anchor_of(network, network.batches(1), curvature=kind)
    for after in (1, 3) if PASSES[kind] == 1 else (2, 6, 8):
        got = resumed(network, after, tmp_path / "checkpoint", curvature=kind)
        same(got, wanted, rtol=SAME, atol=SAME)
        assert (got.items, got.facts) == (wanted.items, wanted.facts)
        assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": 0.5},
        {"draws": 2},
        {"per": "sequence", "curvature": "diagonal"},
        {"max_items": 9},
        {"until": 1e-9},
        {"until": 1e-9, "curvature": "eigen"},
        {"offload": "cpu"},
        {"fisher": "exact"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "mlp"])
def test_every_option_survives(options: dict[str, Any], name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = anchor_of(network, network.batches(1), **options)
        same(resumed(network, 3, tmp_path, **options), wanted, rtol=SAME, atol=SAME)


def test_the_last_batch_may_have_been_summed(tmp_path: Path) -> None:
    network = NETWORKS["bert-sequence"]
    batches = network.batches(1)

    class Ending(Source):
        def __iter__(self) -> Iterator[Batch]:
            yield from self.batches
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Ending(batches), checkpoint=tmp_path)
    got, wanted = anchor_of(network, batches, checkpoint=tmp_path), anchor_of(network, batches)
    same(got, wanted, rtol=SAME, atol=SAME)
    assert got.facts["item"] == "example"


def test_a_source_that_can_be_read_once_is_passed_by(tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Source(network.batches(1), 2), checkpoint=tmp_path)
    got = anchor_of(network, iter(network.batches(1)), checkpoint=tmp_path)
    same(got, anchor_of(network, network.batches(1)), rtol=SAME, atol=SAME)


def test_it_may_be_interrupted_again_and_before_it_began(tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    for after in (0, 2, 3, 4, 8):  # batches that are passed by count as well
        with pytest.raises(KeyboardInterrupt):
            anchor_of(network, Source(network.batches(1), after), checkpoint=tmp_path, curvature="eigen")
    got = anchor_of(network, network.batches(1), checkpoint=tmp_path, curvature="eigen")
    same(got, anchor_of(network, network.batches(1), curvature="eigen"), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_source_that_fails_loses_nothing(error: type[BaseException], tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    with pytest.raises(error):
        anchor_of(network, Source(network.batches(1), 2, error), checkpoint=tmp_path)
    progress = json.loads((tmp_path / "pass-1" / "progress.json").read_text())["progress"]
    assert progress["batches"] == 2


def test_a_batch_that_fails_is_not_summed_by_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "EVERY", 0.0)  # after every batch
    monkeypatch.setattr(resuming, "SHARE", 0.0)
    network, calls = NETWORKS["mlp"], [0]

    def loss(model: nn.Module, batch: Batch) -> Any:
        calls[0] += 1
        logits, labels = network.forward_loss(model, batch)
        if calls[0] == 3:
            logits.register_hook(lambda _: 1 // 0)  # inputs are summed, gradients not
        return logits, labels

    for _ in range(2):
        try:
            got = anchor_of(network, network.batches(1), checkpoint=tmp_path, forward_loss=loss)
        except ZeroDivisionError:
            assert json.loads((tmp_path / "pass-1" / "progress.json").read_text())["progress"]["batches"] == 2
    same(got, anchor_of(network, network.batches(1)), rtol=SAME, atol=SAME)
    assert calls[0] == 3 + 3  # two batches were passed by


def test_a_signal_waits_for_the_end_of_its_batch(tmp_path: Path) -> None:
    network, calls = NETWORKS["mlp"], [0]

    def loss(model: nn.Module, batch: Batch) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return network.forward_loss(model, batch)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, network.batches(1), checkpoint=tmp_path, forward_loss=loss)
    assert json.loads((tmp_path / "pass-1" / "progress.json").read_text())["progress"]["batches"] == 2
    assert signal.getsignal(signal.SIGINT) is before
    got = anchor_of(network, network.batches(1), checkpoint=tmp_path, forward_loss=loss)
    same(got, anchor_of(network, network.batches(1)), rtol=SAME, atol=SAME)


def interrupted(*, active: bool, times: int) -> None:
    """Signals to oneself inside the block."""
    with Deferred(active):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(active=True, times=2)


def test_nothing_is_held_back_without_a_checkpoint() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(active=False, times=1)
