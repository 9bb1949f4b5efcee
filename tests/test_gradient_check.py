"""The check that everything trainable was reached by the first backward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pretrained_kinds import KINDS, run
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from holdfast.adapters import ConvAdapterConfig
from holdfast.adapters.gradients import GradientCheck, require_gradients, without_gradient
from holdfast.errors import HoldfastError


class Half(nn.Module):
    """Two layers, one of which the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.used(x)[:, 0] - labels).square().mean()}


def test_what_no_gradient_reaches_is_named() -> None:
    model = Half()
    model(torch.ones(2, 3), torch.ones(2))["loss"].backward()
    with pytest.raises(
        HoldfastError, match=r"2 of 4 trainable parameters got no gradient: unused.weight, unused.bias"
    ):
        require_gradients(model)
    model.unused.requires_grad_(False)
    require_gradients(model)


def test_zeros_are_gradients_too() -> None:
    kind = KINDS["bert"]
    model = get_peft_model(kind.build(), LoraConfig())
    run(model, kind).square().mean().backward()
    downs = [p.grad for n, p in model.named_parameters() if "lora_A" in n]
    assert all(float(g.abs().max()) == 0 for g in downs if g is not None)
    require_gradients(model)


def test_the_papers_own_failure_is_seen() -> None:
    """Checkpoints of the reentrant kind around layers whose inputs need no gradient: only the head learns."""
    layer = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))
    model = nn.ModuleDict({"layer": layer, "head": nn.Linear(3, 1)})
    hidden = checkpoint(model["layer"], torch.ones(2, 3), use_reentrant=True)
    model["head"](hidden).sum().backward()
    assert without_gradient(model) == ["layer.1.weight", "layer.1.bias"]
    with pytest.raises(HoldfastError, match="use_reentrant"):
        require_gradients(model)


def test_a_trainer_stops_at_its_first_step(tmp_path: object) -> None:
    rows = [{"x": torch.ones(3), "labels": torch.tensor(1.0)}] * 4
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=Half(), args=args, train_dataset=rows, callbacks=[GradientCheck()])  # type: ignore[arg-type]
    with pytest.raises(HoldfastError, match="unused"):
        trainer.train()


def test_a_trainer_with_reentrant_checkpoints_trains_every_block(tmp_path: object) -> None:
    kind = KINDS["vit"]
    from transformers import ViTForImageClassification

    torch.manual_seed(0)
    bare = ViTForImageClassification(kind.build().config)
    model = get_peft_model(
        bare, ConvAdapterConfig(position="attention", se_reduction=2, modules_to_save=["classifier"])
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    rows = [{"pixel_values": kind.inputs()["pixel_values"][0], "labels": 1}] * 4
    args = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
        learning_rate=1e-2,
    )
    Trainer(model=model, args=args, train_dataset=rows, callbacks=[GradientCheck()]).train()  # type: ignore[arg-type]
    after = {n: p for n, p in model.named_parameters() if n in before}
    assert len(before) == 2 * 7 + 2
    assert [n for n in before if torch.equal(after[n], before[n])] == []
