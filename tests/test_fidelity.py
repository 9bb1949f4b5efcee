"""The fidelity benchmark's arithmetic: what a shift really does, and how forecasts are summed up."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fidelity
import truth

ROWS = [{"input_ids": torch.randint(0, 32, (12,), generator=torch.Generator().manual_seed(i))} for i in range(3)]


@pytest.fixture
def tuned() -> torch.nn.Module:
    """A small Llama with LoRA away from its start."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_the_exact_form_is_the_kl_of_a_small_shift(tuned: torch.nn.Module) -> None:
    at = truth.state(tuned)
    found = truth.measured(tuned, ROWS, {(1, scale): truth.scaled(at, scale) for scale in (1.0, 0.03)})
    assert_close(found[1, 0.03]["exact"], found[1, 0.03]["kl"], rtol=0.05, atol=0)
    assert_close(found[1, 0.03]["exact"], 0.03**2 * found[1, 1.0]["exact"], rtol=1e-6, atol=0)


def test_kl_and_loss_rise_are_means_over_tokens(tuned: torch.nn.Module) -> None:
    found = truth.measured(tuned, ROWS, {(1, 1.0): truth.state(tuned)})[1, 1.0]
    ids = torch.stack([row["input_ids"] for row in ROWS])
    with torch.no_grad():
        now = tuned(input_ids=ids, labels=ids)
        with tuned.disable_adapter():
            then = tuned(input_ids=ids, labels=ids)
    p, q = (F.log_softmax(out.logits[:, :-1].double(), dim=-1) for out in (then, now))
    assert_close(found["kl"], float((p.exp() * (p - q)).sum(dim=-1).mean()), rtol=1e-4, atol=0)
    assert_close(found["loss_rise"], float(now.loss - then.loss), rtol=1e-3, atol=1e-6)


def test_loading_a_state_puts_the_adapter_back(tuned: torch.nn.Module) -> None:
    at = truth.state(tuned)
    truth.load(tuned, truth.scaled(at, 0.5))
    halved = truth.state(tuned)
    for name, tensor in at.items():
        assert_close(halved[name], tensor * (0.5 if "lora_B" in name else 1))
    truth.load(tuned, at)
    assert_close(truth.state(tuned), at)


def test_the_summary_takes_medians_over_seeds_and_says_how_far_the_ratio_wanders() -> None:
    way = {"fisher": "data", "per": "token"}
    rows = [
        fidelity.row("kronecker", way, 0.1, seed, (depth, 0.3), half_q, {"kl": 2.0, "loss_rise": 1.5})
        for depth, forecasts in ((5, (0.8, 1.2, 1.0)), (30, (0.4, 0.4, 0.4)))
        for seed, half_q in enumerate(forecasts)
    ]
    told = fidelity.summary(rows)
    assert [(entry["depth"], entry["ratio_to_kl"]) for entry in told] == [(5, 0.5), (30, 0.2)]
    assert_close(told[0]["wander"], 2.5)
    assert told[0]["name"] == "kronecker, data, damping 0.1"
