"""`holdfast analyse pac-bayes`: tune on one half of the documents, then on all, and certify on the other half."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.analysis.landscape import random_twin
from holdfast.analysis.leaving import Finding
from holdfast.analysis.merged import merged, with_adapter
from holdfast.analysis.pac_bayes.bounds import BOUNDS
from holdfast.analysis.pac_bayes.certificate import SAMPLING, Certificate, certify, delta_of_draws
from holdfast.analysis.pac_bayes.divergence import scaled
from holdfast.analysis.pac_bayes.documents import Half, halves, read_documents
from holdfast.analysis.pac_bayes.posterior import Centre, centre, noise_scale, put, stochastic_risk
from holdfast.analysis.pac_bayes.risk import Losses
from holdfast.analysis.pac_bayes.shape import Isotropic, Laplace, Shape, distance
from holdfast.analysis.pac_bayes.words import finding
from holdfast.analysis.subject import Asked
from holdfast.anchor import Anchor
from holdfast.batches import collate
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.language_model import load_model, load_tokenizer
from holdfast.models import shipped
from holdfast.parts import parts_in
from holdfast.progress import track
from holdfast.recipe import TrainingSettings
from holdfast.targets import canonical
from holdfast.training import train

ALONG = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the first half's weights to those of all documents
WINDOWS = 4  # of each document to train on
SEEN = 48  # examples of the first half that set the noise, and that measure a prior's curvature
HALF, START, RANDOM = "first half", "pre-trained", "random"
TRAINED, WEIGHTS = "what is trained", "all weights"


@dataclass(frozen=True)
class Options:
    """How to tune and what to certify.

    Args:
        method: how the model is tuned, of rank `rank` where it has one, for `steps` on the first half and half as
            many on all documents.
        prior: a curvature for the prior's shape: "identity", or one that is measured on the first half.
        loss: "error" or "nats", the latter cut off at `ceiling`.
        delta: the certificate may be wrong with this probability.
        draws: of noise, for the risk under it.
        tolerance: rise of the loss (in [0, 1]) that the noise may cause on the first half.
        share: of the documents, for the first half.
    """

    method: str = "lora"
    rank: int = 2
    steps: int = 60
    learning_rate: float = 3e-3
    prior: str = "identity"
    loss: str = "error"
    ceiling: float = 8.0
    delta: float = 0.05
    draws: int = 1000
    tolerance: float = 0.01
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("delta", "tolerance", "share"):
            if not 0 < getattr(self, name) < 1:
                raise HoldfastError(f"{name} is {getattr(self, name)}", wanted="a number between 0 and 1")
        catalogue.tuner(self.method)
        catalogue.curvature(self.prior)

    @property
    def losses(self) -> Losses:
        """What is bounded."""
        return Losses(self.loss, self.ceiling)


@dataclass
class Certified:
    """All that the words and the picture need; the headline was chosen before the data were seen."""

    found: dict[str, dict[str, Certificate]] = field(default_factory=dict)  # space -> prior -> certificate
    scales: dict[str, float] = field(default_factory=dict)  # space -> s
    dimensions: dict[str, int] = field(default_factory=dict)
    headline: tuple[str, str] = (TRAINED, HALF)
    along: float = 1.0
    before: float = 0.0  # the pre-trained model's loss on the same examples
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def certificate(self) -> Certificate:
        """The one that counts."""
        space, prior = self.headline
        return self.found[space][prior]


@dataclass
class Run:
    """What every step of an analysis needs."""

    model: Any
    first: Half
    second: Half
    options: Options
    seed: int
    advance: Callable[[], object]

    def scale(self, model: Any, around: Centre, shape: Shape) -> float:
        """The noise that the first half bears: chosen without a look at the second."""
        examples, losses = self.first.examples[:SEEN], self.options.losses
        return noise_scale(
            lambda: float(losses.of(model, examples).mean()),
            _all_or_trained(model, around),
            around,
            shape,
            tolerance=self.options.tolerance,
            draws=2,
            rounds=10,
            seed=self.seed,
        )

    def certify(
        self, model: Any, posterior: Centre, priors: dict[str, Centre], shape: Shape, scale: float
    ) -> dict[str, Certificate]:
        """A certificate for each prior on the second half's examples; Q is the same in all."""
        options, examples = self.options, self.second.examples
        risk = stochastic_risk(
            model,
            _all_or_trained(model, posterior),
            posterior,
            shape,
            scale,
            examples,
            options.losses,
            draws=options.draws,
            delta=delta_of_draws(options.delta),
            seed=self.seed + 1,
            advance=self.advance,
        )
        most = options.losses.most
        return {
            name: certify(name, posterior, prior, shape, scale, risk, len(examples), delta=options.delta, most=most)
            for name, prior in priors.items()
        }


def study(
    asked: Asked, options: Options, adapter: Path | None = None, prior_adapter: Path | None = None
) -> Finding:
    """Certify what tuning on the target's documents gave, or a finished adapter.

    Raises:
        HoldfastError: a model, adapter or data that can't be read, too few documents, or nothing to tune.
    """
    name = asked.model or str(shipped())
    tokenizer, model = load_tokenizer(name), load_model(name, asked.dtype)
    check_tokenizer(tokenizer, model, length=asked.length)
    documents = read_documents(asked.target)
    parts = halves(documents, tokenizer, asked.length, share=options.share, windows=WINDOWS, seed=asked.seed)
    first, second = parts
    _check_count(first, second, options)
    before = float(options.losses.of(model, second.examples).mean()) * options.losses.most
    spaces = 1 if adapter is not None else 2
    with track("draws", spaces * options.draws, unit="draw") as advance:
        run = Run(model, first, second, options, asked.seed, advance)
        certified = _tuned(run) if adapter is None else _finished(run, adapter, prior_adapter)
    certified.before = before
    certified.facts = {"documents": documents.description, "first_half": len(first.examples), "common": _common(parts)}
    settings = {**asdict(asked), **asdict(options), "adapter": adapter, "prior_adapter": prior_adapter}
    return finding(certified, settings)


def _check_count(first: Half, second: Half, options: Options) -> None:
    BOUNDS["seeger"](0.0, 0.0, len(second.examples), options.delta)  # refuses what is too few
    if not first.training:
        raise HoldfastError("no document of the first half is long enough to train on", remedy="give more documents")


def _tuned(run: Run) -> Certified:
    """Tune on the first half, set noise and shape there, tune on, and certify on the second half."""
    options = run.options
    torch.manual_seed(run.seed)  # of the adapter's initialisation: the prior's centre must come from no data
    model = catalogue.tuner(options.method)().prepare(run.model, "all-linear", options.rank, None)
    trained = {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}
    start = centre(trained)
    _train(model, run.first.training, options, options.steps, run.seed)
    half = centre(trained)
    shape = _shape(model, run, trained)
    scale = run.scale(model, half, shape)
    _train(model, run.first.training + run.second.training, options, max(options.steps // 2, 1), run.seed + 1)
    whole = centre(trained)
    along = _best_along(model, run, trained, half, whole, shape, scale)
    posterior = between(half, whole, along)
    made = Certified(along=along)
    made.found[TRAINED] = run.certify(model, posterior, {START: start, HALF: half}, shape, scale)
    made.scales[TRAINED], made.dimensions[TRAINED] = scale, sum(t.numel() for t in start.values())
    priors = {}
    for name, values in ((START, start), (HALF, half), ("", posterior)):
        put(trained, values)
        priors[name] = merged(copy.deepcopy(model))
    _in_weights(run, made, priors.pop(""), priors)
    return made


def _finished(run: Run, adapter: Path, prior_adapter: Path | None) -> Certified:
    """Certify an adapter as it stands, in the space of all weights."""
    priors = {START: run.model}
    if prior_adapter is not None:
        priors[HALF] = with_adapter(run.model, prior_adapter)
    made = Certified(headline=(WEIGHTS, HALF if prior_adapter is not None else START))
    _in_weights(run, made, with_adapter(run.model, adapter), priors)
    return made


def _in_weights(run: Run, made: Certified, tuned: Any, priors: dict[str, Any]) -> None:
    """The same model with noise on all of its weights: what lets a random initialisation be compared."""
    shape, centres = Isotropic(), {RANDOM: random_twin(tuned, run.seed), **priors}
    posterior = centre(_every(tuned))
    scale = run.scale(tuned, centre(_every(centres.get(HALF, centres[START]))), shape)
    made.scales[WEIGHTS], made.dimensions[WEIGHTS] = scale, sum(t.numel() for t in posterior.values())
    values = {name: centre(_every(model)) for name, model in centres.items()}
    made.found[WEIGHTS] = run.certify(tuned, posterior, values, shape, scale)


def _every(model: Any) -> dict[str, Any]:
    return {canonical(name): p for name, p in model.named_parameters() if p.is_floating_point()}


def _all_or_trained(model: Any, values: Centre) -> dict[str, Any]:
    return {name: p for name, p in _every(model).items() if name in values}


def between(one: Centre, other: Centre, along: float) -> dict[str, Any]:
    """one + along (other - one)."""
    return {name: torch.lerp(one[name], other[name], along) for name in one}


def _best_along(
    model: Any, run: Run, trained: dict[str, Any], half: Centre, whole: Centre, shape: Shape, scale: float
) -> float:
    """How far towards the weights of all documents the bound is least; it holds for every posterior, so for this one."""
    options, n = run.options, len(run.second.examples)
    bounds = {}
    for along in ALONG:
        values = between(half, whole, along)
        put(trained, values)
        risk = float(options.losses.of(model, run.second.examples).mean())
        divergence = scaled(1, scale, scale, distance(shape, values, half))
        bounds[along] = BOUNDS["seeger"](risk, divergence, n, options.delta * (1 - SAMPLING))
    return min(bounds, key=bounds.__getitem__)


def _shape(model: Any, run: Run, trained: dict[str, Any]) -> Shape:
    kind = run.options.prior
    if not catalogue.curvature(kind).statistics():
        return Isotropic()
    rows = run.first.examples[:SEEN]
    batches = [collate(rows[i : i + 8]) for i in range(0, len(rows), 8)]
    space: Any = "adapter" if hasattr(model, "peft_config") else "weights"
    anchor = Anchor.estimate(model, batches, curvature=kind, space=space, seed=run.seed, progress=False)
    parts, names = parts_in(model, space), {id(p): name for name, p in trained.items()}
    known = {names[id(parts[name].tensor)]: (c, parts[name].matrix) for name, c in anchor.curvatures.items()}
    return Laplace({name: c for name, (c, _) in known.items()}, {name: view for name, (_, view) in known.items()})


def _train(model: Any, rows: list[Any], options: Options, steps: int, seed: int) -> None:
    settings = TrainingSettings(steps=steps, batch_size=16, learning_rate=options.learning_rate, warmup=0.05)
    train(model, rows, settings, seed=seed)


def _common(parts: tuple[Half, Half]) -> float:
    """The share of the second half's scored tokens that are its commonest one: what guessing it would get right."""
    ids = torch.cat([row["labels"][1:] for row in parts[1].examples])
    return float(torch.bincount(ids[ids >= 0]).max()) / int((ids >= 0).sum())
