"""Models whose parameters are shards are refused: by who holds them, or by the marks on their parameters."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainer_worker as worker
from networks import NETWORKS
from test_trainers import arguments
from torch import nn

import holdfast
from holdfast.errors import HoldfastError
from holdfast.pretrained import check_whole

MLP = NETWORKS["mlp"]


class FullyShardedDataParallel(nn.Module):
    """FSDP's wrapper, by its name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class DTensor(torch.Tensor):
    """What FSDP2 and tensor parallelism make of parameters, by its name."""


class OfUser(FullyShardedDataParallel):
    """What a user derives from it."""


def fully_shard(model: nn.Module) -> nn.Module:
    module = next(m for m in model.modules() if isinstance(m, nn.Linear))
    module.weight = nn.Parameter(
        module.weight.detach().as_subclass(DTensor), requires_grad=module.weight.requires_grad
    )
    return model


def wrapped_inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), OfUser(model))


def zero(model: nn.Module) -> nn.Module:
    """ZeRO stage 3 marks every parameter; its data are gone."""
    for number, parameter in enumerate(model.parameters()):
        mark: Any = parameter
        mark.ds_id = number
    return model


SHARDED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "FSDP": (FullyShardedDataParallel, "FSDP shards them"),
    "FSDP inside": (wrapped_inside, "FSDP shards them"),
    "FSDP2": (fully_shard, "FSDP shards them"),
    "ZeRO-3": (zero, "ZeRO stage 3 shards them"),
}


@pytest.mark.parametrize("how", SHARDED)
@pytest.mark.parametrize("curvature", ["kronecker", "identity"])
def test_an_anchor_of_shards_is_refused(how: str, curvature: str) -> None:
    shard, says = SHARDED[how]

    class Untouched:
        """Batches that nobody may ask for: another rank could be without any."""

        def __iter__(self) -> Any:
            raise AssertionError("the data were read")

    source = None if curvature == "identity" else Untouched()
    with pytest.raises(HoldfastError, match=f"(?s)anchors read whole parameters, and {says}.*before the model is"):
        holdfast.Anchor.estimate(shard(MLP.build()), source, forward_loss=MLP.forward_loss, curvature=curvature)


def test_whole_models_pass() -> None:
    check_whole(MLP.build(), "anchors")
    check_whole(nn.Sequential(MLP.build()), "anchors")


@pytest.mark.parametrize("how", ["FSDP2", "ZeRO-3"])
@pytest.mark.parametrize("way", ["callback", "attach"])
def test_trainers_refuse_models_that_are_sharded_already(how: str, way: str) -> None:
    model = worker.lora_model()
    penalty = worker.make_term("penalty", model, torch.float64)
    shard, says = SHARDED[how]
    shard(model)

    def join() -> None:
        if way == "attach":
            holdfast.attach(SimpleNamespace(args=arguments(), model=model), penalty)
        else:
            holdfast.HoldfastCallback(penalty).on_train_begin(arguments(), None, None, model=model)

    with pytest.raises(HoldfastError, match=f"penalties read whole parameters, and {says}"):
        join()
