"""One seed of a comparison: what its rows share, and a row for each way of holding on."""

import time
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.batches import collate
from holdfast.before_after import batches, finite
from holdfast.budgets.gauge import Gauge, Reading
from holdfast.comparison import ComparisonSettings, Hold, Workload, measure, sides
from holdfast.continuations import Continuations
from holdfast.language_model import load_model, load_tokenizer
from holdfast.outcome import outcome
from holdfast.penalties.anchored import Anchored
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.regularizer import Regularizer
from holdfast.penalties.replay import Replay
from holdfast.sampling import sample_from
from holdfast.training import Trained, train
from holdfast.tuners.options import chosen
from holdfast.tuners.tuner import Tuner
from holdfast.tuning_method import put_on, sized

# What forecasts: other structures don't see what layers do together, least of all under a penalty of their own.
FORECASTER = Hold(curvature="samples-joint", keep=64)


class Contender:
    """One seed's preparations, shared by its rows: anchors, sampled text, losses before."""

    def __init__(self, settings: ComparisonSettings, work: Workload, seed: int) -> None:
        torch.manual_seed(seed)
        self.settings, self.work, self.seed = settings, work, seed
        self.tokenizer = load_tokenizer(settings.model)
        self._anchors: dict[tuple[str, ...], tuple[Anchor, float]] = {}
        self._texts: dict[str, tuple[list[dict[str, Tensor]], float]] = {}

    def model(self) -> nn.Module:
        """A fresh copy of the pre-trained model."""
        return load_model(self.settings.model, "float32")

    @cached_property
    def _known(self) -> dict[str, Any]:
        """What the gauges of the measured rows hold of the pre-trained model."""
        model, found = self.model(), {}
        for name, rows in self.work.measured.items():
            gauge = Gauge(model, batches(rows), name=name)
            gauge.prepare()
            found[name] = gauge.state() | {"loss": gauge.loss}
        return found

    @cached_property
    def before(self) -> dict[str, float]:
        """Losses of the pre-trained model, nats per item."""
        return {name: state["loss"] for name, state in self._known.items()}

    def rises(self, model: nn.Module) -> dict[str, Reading]:
        """How far the loss has risen since, on every measured set."""
        found = {}
        for name, rows in self.work.measured.items():
            gauge = Gauge(model, batches(rows), name=name)
            gauge.restore(self._known[name])
            found[name] = gauge.look(whole=True)
        return found

    @cached_property
    def _continued(self) -> Continuations:
        return Continuations(self.model(), self.tokenizer, self.work.prompts)

    @cached_property
    def source(self) -> list[dict[str, Tensor]]:
        """Source rows of this seed as one batch: for anchors, distillation on real text, and replay."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.work.source_train), generator=generator)[: self.settings.source_sequences]
        return [collate([self.work.source_train[i] for i in order.tolist()])]

    def text(self, kind: str) -> tuple[list[dict[str, Tensor]], float]:
        """What to distil on, as one batch, and the seconds it took: the source, the model's own words, ..."""
        if kind not in self._texts:
            started = time.perf_counter()
            self._texts[kind] = [self._drawn(kind)], time.perf_counter() - started
        return self._texts[kind]

    def _drawn(self, kind: str) -> dict[str, Tensor]:
        count, length = self.settings.source_sequences, self.settings.length
        if kind == "source":
            return self.source[0]
        if kind == "self":
            return collate(sample_from(self.model(), count, length, seed=self.seed, progress=False))
        if kind == "target":
            return collate(self.work.target_train[:count])
        generator = torch.Generator().manual_seed(self.seed)
        return {"input_ids": torch.randint(len(self.tokenizer), (count, length), generator=generator)}

    def anchor(self, hold: Hold, model: nn.Module | None = None) -> tuple[Anchor, float]:
        """The anchor that a way of holding on asks for, measured once, and the seconds it took.

        Args:
            hold: its curvature, and how it is estimated.
            model: with its adapter as it starts, for a curvature of the adapter's own parameters.
        """
        assert hold.curvature is not None
        method, targets = self._trained(hold)
        kind, born = hold.curvature, (method,) if hold.space == "adapter" else ()
        key = (kind, str(hold.estimate), str(targets), *born)
        if key not in self._anchors:
            started = time.perf_counter()
            needs_data = bool(catalogue.curvature(kind).statistics())
            batch = self.source[0]
            pieces = [{n: t[i : i + 8] for n, t in batch.items()} for i in range(0, len(batch["input_ids"]), 8)]
            anchor = Anchor.estimate(
                self.model() if model is None or not born else model,
                pieces if needs_data else None,
                curvature=kind,
                targets=targets,
                seed=self.seed,
                progress=False,
                **(hold.estimate if needs_data else {}),
            )
            self._anchors[key] = anchor, time.perf_counter() - started
        return self._anchors[key]

    def _trained(self, hold: Hold) -> tuple[str, Any]:
        """The method and the layers that one way of holding on trains."""
        return hold.method or self.settings.method, hold.targets or self.settings.targets

    def tuner(self, hold: Hold) -> Tuner:
        """What trains in one way of holding on; the comparison's rank counts where the method has one."""
        tuner = catalogue.tuner(self._trained(hold)[0])
        ranked = hold.parameters is None and "rank" in tuner.Options.model_fields
        return chosen(tuner, hold.tuner, rank=self.settings.rank if ranked else None)

    def penalties(self, model: nn.Module, hold: Hold) -> tuple[list[Regularizer], float]:
        """The regularizers of one way of holding on, and the seconds spent before training."""
        found: list[Regularizer] = []
        seconds = 0.0
        if hold.curvature is not None:
            anchor, measuring = self.anchor(hold, model)
            form: Any = catalogue.find("penalty", hold.form)
            found.append(form(model, anchor, hold.strength, **hold.pricing))
            seconds += measuring
        if hold.distill:
            text, drawing = self.text(hold.distill_source)
            seconds += drawing
            started = time.perf_counter()
            found.append(
                Distill(
                    model,
                    text,
                    hold.distill,
                    sequences=hold.distill_sequences,
                    every=hold.distill_every,
                    top_k=hold.distill_top_k,
                    seed=self.seed,
                    progress=False,
                )
            )
            seconds += time.perf_counter() - started
        if hold.replay:
            found.append(Replay(model, self.source, hold.replay, sequences=hold.distill_sequences, seed=self.seed))
        return found, seconds

    def row(self, hold: Hold, on_step: Any = None) -> dict[str, Any]:
        """Train one way of holding on and measure it: a row of `results.json`."""
        torch.manual_seed(self.seed)
        method, targets = self._trained(hold)
        base = self.model()
        tuner = sized(self.tuner(hold), base, targets, hold.parameters)
        rows, size = self.work.target_train, self.settings.training.batch_size
        model, trains = put_on(tuner, base, targets, rows, size, self.settings.length, self.seed)
        penalties, preparation = self.penalties(model, hold)
        steered, teller = self._steered(penalties, hold), self._teller(model, hold) if tuner.shifts else None
        trained, along = self._run(model, hold, penalties, tuner, on_step)
        rises = self.rises(model)
        after = {name: rise.loss for name, rise in rises.items()}
        anchored = next((p for p in penalties if isinstance(p, Anchored)), None)
        return {
            "method": method,
            "penalty": hold.label,
            "strength": None if hold.budget else hold.strength or hold.distill or hold.replay or None,
            **outcome(steered),
            "scaled_by": trained.scaled_by,
            "hold": hold.model_dump(exclude_defaults=True),
            "seed": self.seed,
            **sides(self.before, after, "test"),
            "validation": sides(self.before, after, "validation"),
            "rises": {name: {"nats": rise.amount, "error": finite(rise.error)} for name, rise in rises.items()},
            "along": along,
            "predicted_forgetting": None if teller is None else teller.predicted_forgetting,
            "anchor_seconds": preparation,
            "seconds": trained.seconds,
            "seconds_per_step": trained.seconds_per_step,
            "cpu_seconds_per_step": trained.cpu_seconds_per_step,
            "peak_memory_mb": trained.peak_memory_mb,
            "trainable_parameters": trained.trainable_parameters,
            "trainable_by_component": trains.components,
            "tuner": trains.options,
            "history": trained.history,
            "per_layer": anchored.per_layer() if anchored is not None else {},
            "samples": self._continued.since(model),
        }

    def _steered(self, penalties: list[Regularizer], hold: Hold) -> Regularizer | None:
        """The penalty that a budget steers."""
        if hold.budget is None:
            return None
        assert len(penalties) == 1
        return penalties[0].keep_within(hold.budget, batches(self.work.steering))

    def _run(
        self, model: nn.Module, hold: Hold, penalties: list[Regularizer], tuner: Tuner, on_step: Any
    ) -> tuple[Trained, list[dict[str, float]]]:
        """Train in place; what was measured along the way, by step."""
        along: list[dict[str, float]] = []

        def watch(step: int, steps: int) -> None:
            if step in hold.evaluate_at:
                along.append({"step": step, **measure(model, self.work)})
            if on_step is not None:
                on_step(step, steps)

        trained = train(
            model,
            self.work.target_train,
            hold.training(self.settings.training),
            penalties=penalties,
            callbacks=tuner.callbacks(),
            seed=self.seed,
            on_step=watch,
            quiet=True,
        )
        return trained, along

    def _teller(self, model: nn.Module, hold: Hold) -> Penalty:
        """What says at the end, by the forecaster's anchor, where the run went; it holds nothing."""
        _, targets = self._trained(hold)
        anchor, _ = self.anchor(FORECASTER.model_copy(update={"targets": targets}))
        return Penalty(model, anchor)
