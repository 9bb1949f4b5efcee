"""The same prompts continued by a model before and after training."""

from collections.abc import Mapping
from typing import Any

import torch


class Continuations:
    """What the pre-trained model says after each prompt, to be held beside what it says later.

    Args:
        model: pre-trained.
        tokenizer: its own.
        prompts: side -> a prompt.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: Mapping[str, str]) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts
        self.before = {side: self._continue(model, prompt) for side, prompt in prompts.items()}

    def since(self, model: Any) -> list[dict[str, str]]:
        """Side, prompt, and its continuations before and after."""
        return [
            {"side": side, "prompt": prompt, "before": self.before[side], "after": self._continue(model, prompt)}
            for side, prompt in self.prompts.items()
        ]

    def _continue(self, model: Any, prompt: str) -> str:
        encoded = self.tokenizer(prompt, return_tensors="pt").to(next(model.parameters()).device)
        torch.manual_seed(0)
        model.eval()
        with torch.no_grad():
            ids = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                do_sample=True,
                temperature=0.7,
                max_new_tokens=60,
            )
        return self.tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
