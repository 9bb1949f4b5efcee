"""SIFT inside `transformers` and `trl` trainers: entries are chosen before the first step and, if asked for, again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from holdfast.batches import batches_of
from holdfast.errors import HoldfastError
from holdfast.likelihood import ForwardLoss
from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import entries_of
from holdfast.sift.refresh import refresh
from holdfast.sift.scores import score_of
from holdfast.sift.selection import ACCUMULATOR_MB, Selection, competes, config_of, resized, select
from holdfast.sift.stepping import attend


class SiftCallback(TrainerCallback):
    """Chooses SIFT's entries in a trainer; `Trainer(peft_model, ..., callbacks=[SiftCallback()])`.

    Before the first step, unless they are chosen already or the run is resumed; and again after every
    `config.refresh` steps, the last one apart, with optimizer states carried over. The batches are rows of the
    training data that the seed, the step and the rank decide, made into batches as the trainer does, so a resumed run
    chooses as an uninterrupted one. The trainer's own order of batches and torch's random states are not touched.

    Attributes:
        selections: (step, what was chosen then).

    Args:
        batches: to choose on instead: a sequence of batches or a tokenised dataset, taken in turns. The same on every
            rank, or each rank's own.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.
        accumulator_mb, progress: as for `select`.

    Raises:
        HoldfastError: at the start of training: as `select`; a streamed dataset without `batches`; scope "global"
            under several processes, where `select` has to come first.
    """

    def __init__(
        self,
        batches: Any = None,
        forward_loss: ForwardLoss | None = None,
        *,
        accumulator_mb: float = ACCUMULATOR_MB,
        progress: bool = True,
    ) -> None:
        self.batches: Sequence[Any] | None = None if batches is None else list(batches_of(batches))
        self.forward_loss, self.accumulator_mb, self.progress = forward_loss, accumulator_mb, progress
        self.selections: list[tuple[int, Selection]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose what is not chosen yet."""
        model = kwargs["model"]
        found = entries_of(model)
        attend(one.entries for one in found.values())
        config = config_of(model, found)
        if config.refresh and score_of(config.score).gradient:
            self._check_source(kwargs.get("train_dataloader"))
        if all(one.entries.chosen for one in found.values()):
            return
        if args.world_size > 1 and competes(config):
            raise resized()
        self._note(0, select(model, self._drawn(config, args, 0, kwargs), self.forward_loss, **self._options()))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose again where it is time to; never after the last step, which nothing would train."""
        model, step = kwargs["model"], state.global_step
        config = config_of(model, entries_of(model))
        if not config.refresh or step % config.refresh or step >= state.max_steps:
            return
        batches = self._drawn(config, args, step // config.refresh, kwargs)
        self._note(step, refresh(model, batches, kwargs["optimizer"], self.forward_loss, **self._options()))

    def _options(self) -> dict[str, Any]:
        return {"accumulator_mb": self.accumulator_mb, "progress": self.progress}

    def _note(self, step: int, selection: Selection) -> None:
        self.selections.append((step, selection))

    def _drawn(
        self, config: SiftConfig, args: TrainingArguments, turn: int, kwargs: dict[str, Any]
    ) -> list[Any] | None:
        """The batches of the turn-th choice: a function of it, the seed and the rank alone."""
        if not score_of(config.score).gradient:
            return None
        if self.batches is not None:
            start = turn * config.batches
            count = min(config.batches, len(self.batches))
            return [self.batches[(start + i) % len(self.batches)] for i in range(count)]
        loader = kwargs["train_dataloader"]
        self._check_source(loader)
        rows, size = loader.dataset, args.train_batch_size
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + turn)
        order = torch.randperm(len(rows), generator=generator).tolist()
        first = args.process_index * config.batches * size
        picked = [order[(first + i) % len(order)] for i in range(min(config.batches * size, len(order)))]
        with torch.random.fork_rng(devices=[]):  # collators draw: masks, crops
            torch.manual_seed(config.seed * 1_000_003 + turn * args.world_size + args.process_index)
            return [
                loader.collate_fn([rows[i] for i in picked[start : start + size]])
                for start in range(0, len(picked), size)
            ]

    def _check_source(self, loader: Any) -> None:
        dataset = getattr(loader, "dataset", None)
        if self.batches is None and (isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")):
            raise HoldfastError(
                "the training data is a stream, which has no rows to draw from",
                remedy="SiftCallback(batches=[...]), some batches to choose entries on",
            )
