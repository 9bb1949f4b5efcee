"""`holdfast analyse pac-bayes`: tune on one half of the documents, then on all, and certify on the other half."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from holdfast import catalogue
from holdfast.analysis.landscape import random_twin
from holdfast.analysis.leaving import Finding
from holdfast.analysis.merged import merged, with_adapter
from holdfast.analysis.pac_bayes.bounds import BOUNDS
from holdfast.analysis.pac_bayes.certificate import SAMPLING
from holdfast.analysis.pac_bayes.certifying import HALF, RANDOM, SEEN, START, TRAINED, WEIGHTS, Certified, Run, every
from holdfast.analysis.pac_bayes.divergence import scaled
from holdfast.analysis.pac_bayes.documents import Half, halves, read_documents
from holdfast.analysis.pac_bayes.options import Options
from holdfast.analysis.pac_bayes.posterior import Centre, centre, put
from holdfast.analysis.pac_bayes.shape import Isotropic, Laplace, Shape, distance
from holdfast.analysis.pac_bayes.sparse import sparse_space
from holdfast.analysis.pac_bayes.words import finding
from holdfast.analysis.subject import Asked, batches
from holdfast.anchor import Anchor
from holdfast.data import check_tokenizer
from holdfast.errors import HoldfastError
from holdfast.language_model import is_model, load_adapter, load_model, load_tokenizer
from holdfast.models import shipped
from holdfast.parts import Space, parts_in
from holdfast.progress import track
from holdfast.recipe import TrainingSettings
from holdfast.targets import canonical
from holdfast.training import train
from holdfast.tuners.options import chosen
from holdfast.tuners.tuner import Tuner
from holdfast.tuning_method import get_ready, sized

ALONG = (
    0.0,
    0.01,
    0.02,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
)  # of the way from the first half's weights to those of all documents
WINDOWS = 4  # of each document to train on
RANK = 2  # of the adapter, unless asked for another
BATCH = 16  # rows of a training step
QUARTER = 4  # the comparison over all weights takes a draw for every so many of the headline's


def study(asked: Asked, options: Options, adapter: Path | None = None, prior_adapter: Path | None = None) -> Finding:
    """Certify what tuning on the target's documents gave, or a finished adapter.

    Raises:
        HoldfastError: a model, adapter or data that can't be read, too few documents, or nothing to tune.
    """
    name = asked.model or str(shipped())
    tokenizer, model = load_tokenizer(name), load_model(name, asked.dtype)
    check_tokenizer(tokenizer, model, length=asked.length)
    documents = read_documents(asked.target)
    first, second = halves(documents, tokenizer, asked.length, share=options.share, windows=WINDOWS, seed=asked.seed)
    _check_count(first, second, options)
    before = float(options.losses.of(model, second.examples).mean()) * options.losses.most
    total = options.draws + (0 if adapter is not None else _fewer(options.draws))
    with track("draws", total, unit="draw") as advance:
        run = Run(model, first, second, options, asked.seed, advance)
        certified = _tuned(run) if adapter is None else _finished(run, adapter, prior_adapter, asked.dtype)
    certified.before = before
    certified.facts = {
        "documents": documents.description,
        "first_half": len(first.examples),
        "common": _commonest(second),
        "curved": _curved(options),
    }
    settings = {**asdict(asked), **asdict(options), "adapter": adapter, "prior_adapter": prior_adapter}
    return finding(certified, settings)


def _check_count(first: Half, second: Half, options: Options) -> None:
    BOUNDS["seeger"](0.0, 0.0, len(second.examples), options.delta)  # refuses what is too few
    if not first.training:
        raise HoldfastError("no document of the first half is long enough to train on", remedy="give more documents")


def _tuned(run: Run) -> Certified:
    """Tune on the first half, set noise and shape there, tune on, and certify on the second half."""
    options = run.options
    tuner, model = _prepared(run)
    trained = {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}
    start = centre(trained)
    _train(model, run.first.training, options, options.steps, run.seed, tuner)
    half = centre(trained)
    shape = _shape(model, run, "adapter" if tuner.adapter else "weights")
    scale = run.scale(model, half, shape)
    _train(model, run.first.training + run.second.training, options, max(options.steps // 2, 1), run.seed + 1, tuner)
    whole = centre(trained)
    along = _best_along(model, run, trained, half, whole, shape, scale)
    posterior = between(half, whole, along)
    made = Certified(along=along, whole=scaled(1, scale, scale, distance(shape, whole, half)))
    made.found[TRAINED] = run.certify(model, posterior, {START: start, HALF: half}, shape, scale, options.draws)
    made.scales[TRAINED], made.dimensions[TRAINED] = scale, sum(t.numel() for t in start.values())
    sparse = sparse_space(model)
    made.choice = None if sparse is None else sparse.support
    if tuner.shifts:
        nearest = _whole(model, trained, half)
        priors: dict[str, Centre] = {START: centre(every(_whole(model, trained, start))), HALF: centre(every(nearest))}
        _in_weights(
            run,
            made,
            _whole(model, trained, posterior),
            priors,
            _shape(nearest, run, "weights"),
            _fewer(options.draws),
        )
    return made


def _prepared(run: Run) -> tuple[Tuner, Any]:
    """The method, and the model with an adapter whose start comes from the seed and the first half alone.

    The prior's centre and what trains at all (the entries of a sparse method) must not depend on the second half.
    """
    options, kind = run.options, catalogue.tuner(run.options.method)
    small = RANK if "rank" in kind.Options.model_fields and options.parameters is None else None
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        asked = chosen(kind, {}, rank=small if options.rank is None else options.rank)
        tuner = sized(asked, run.model, "all-linear", options.parameters)
        model = tuner.prepare(run.model, "all-linear")
        get_ready(tuner, model, run.first.training, BATCH, run.seed)
    return tuner, model


def _whole(model: Any, trained: dict[str, Any], values: Centre) -> Any:
    """A copy of the model with its adapter, at these values, in its weights."""
    put(trained, values)
    return merged(copy.deepcopy(model))


def _fewer(draws: int) -> int:
    return max(draws // QUARTER, 2)


def _finished(run: Run, adapter: Path, prior_adapter: Path | None, dtype: str) -> Certified:
    """Certify an adapter as it stands, in the space of all weights; a sparse one on its own entries as well."""
    made = Certified(headline=(WEIGHTS, HALF if prior_adapter is not None else START))
    if not is_model(adapter):
        _in_entries(run, made, load_adapter(copy.deepcopy(run.model), str(adapter)))
    priors: dict[str, Centre] = {START: centre(every(run.model))}
    nearest = run.model
    if prior_adapter is not None:
        nearest = with_adapter(run.model, prior_adapter, dtype)
        priors[HALF] = centre(every(nearest))
    _in_weights(
        run, made, with_adapter(run.model, adapter, dtype), priors, _shape(nearest, run, "weights"), run.options.draws
    )
    return made


def _in_entries(run: Run, made: Certified, adapted: Any) -> None:
    """Noise on the entries alone. Who chose them, and on what, is not known, so their choice is paid for.

    Nothing is certified where whole modules train beside the entries: they would be without noise, infinitely far
    from where they began.
    """
    space = sparse_space(adapted)
    if space is None or not space.alone:
        return
    shape, posterior = Isotropic(), centre(space.parameters)
    scale = run.scale(adapted, space.start, shape)
    draws = _fewer(run.options.draws)
    made.found[TRAINED] = run.certify(adapted, posterior, {START: space.start}, shape, scale, draws, space.support)
    made.scales[TRAINED], made.dimensions[TRAINED] = scale, sum(t.numel() for t in posterior.values())


def _in_weights(run: Run, made: Certified, tuned: Any, priors: dict[str, Centre], shape: Shape, draws: int) -> None:
    """The same model with noise on all of its weights: what lets a random initialisation be compared."""
    posterior = centre(every(tuned))
    scale = run.scale(tuned, priors.get(HALF, priors[START]), shape)
    centres = {RANDOM: centre(every(random_twin(tuned, run.seed))), **priors}
    made.scales[WEIGHTS], made.dimensions[WEIGHTS] = scale, sum(t.numel() for t in posterior.values())
    made.found[WEIGHTS] = run.certify(tuned, posterior, centres, shape, scale, draws)


def between(one: Centre, other: Centre, along: float) -> dict[str, Any]:
    """one + along (other - one)."""
    return {name: torch.lerp(one[name], other[name], along) for name in one}


def _best_along(
    model: Any, run: Run, trained: dict[str, Any], half: Centre, whole: Centre, shape: Shape, scale: float
) -> float:
    """How far towards the weights of all documents the bound is least; it holds for all posteriors at once."""
    options, n = run.options, len(run.second.examples)
    bounds = {}
    for along in ALONG:
        values = between(half, whole, along)
        put(trained, values)
        risk = float(options.losses.of(model, run.second.examples).mean())
        divergence = scaled(1, scale, scale, distance(shape, values, half))
        bounds[along] = BOUNDS["seeger"](risk, divergence, n, options.delta * (1 - SAMPLING))
    return min(bounds, key=bounds.__getitem__)


def _shape(model: Any, run: Run, space: Space) -> Shape:
    """Of prior and posterior, measured on the first half at the model as it is."""
    if not _curved(run.options):
        return Isotropic()
    rows = run.first.examples[:SEEN]
    anchor = Anchor.estimate(
        model, batches(rows), curvature=run.options.prior, space=space, seed=run.seed, progress=False
    )
    parts, names = parts_in(model, space), {id(p): name for name, p in every(model).items()}
    known = {names[id(parts[name].tensor)]: (c, parts[name].matrix) for name, c in anchor.curvatures.items()}
    return Laplace({name: c for name, (c, _) in known.items()}, {name: view for name, (_, view) in known.items()})


def _curved(options: Options) -> bool:
    """Whether the prior's shape is a curvature that has to be measured."""
    return bool(catalogue.curvature(options.prior).statistics())


def _train(model: Any, rows: list[Any], options: Options, steps: int, seed: int, tuner: Tuner) -> None:
    settings = TrainingSettings(steps=steps, batch_size=BATCH, learning_rate=options.learning_rate, warmup=0.05)
    train(model, rows, settings, callbacks=tuner.callbacks(), seed=seed)


def _commonest(half: Half) -> float:
    """What always guessing the commonest scored token would get right, as the loss counts: the mean over documents."""
    rows = [row["labels"][1:] for row in half.examples]
    rows = [labels[labels >= 0] for labels in rows]
    token = torch.bincount(torch.cat(rows)).argmax()
    return sum(float((labels == token).double().mean()) for labels in rows) / len(rows)
