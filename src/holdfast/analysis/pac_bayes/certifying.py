"""Certificates of one model for several priors: noise set on the first half, risk measured on the second."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast.analysis.pac_bayes.certificate import Certificate, certify, delta_of_draws
from holdfast.analysis.pac_bayes.documents import Half
from holdfast.analysis.pac_bayes.options import Options
from holdfast.analysis.pac_bayes.posterior import Centre, noise_scale, stochastic_risk
from holdfast.analysis.pac_bayes.shape import Shape
from holdfast.targets import canonical

SEEN = 48  # examples of the first half that set the noise, and that measure a prior's curvature
HALF, START, RANDOM = "first half", "pre-trained", "random"  # where priors are centred
TRAINED, WEIGHTS = "what is trained", "all weights"  # what the noise is on


@dataclass
class Certified:
    """All that the words and the picture need; the headline was chosen before the data were seen."""

    found: dict[str, dict[str, Certificate]] = field(default_factory=dict)  # space -> prior -> certificate
    scales: dict[str, float] = field(default_factory=dict)  # space -> s
    dimensions: dict[str, int] = field(default_factory=dict)
    headline: tuple[str, str] = (TRAINED, HALF)
    along: float = 1.0  # of the way from the first half's weights to those of all documents, where Q is centred
    whole: float | None = None  # KL, nats, were it centred at the latter
    choice: float | None = None  # nats that a sparse method's choice would cost, made on the second half
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
            named(model, around),
            around,
            shape,
            tolerance=self.options.tolerance,
            draws=2,
            rounds=10,
            seed=self.seed,
        )

    def certify(
        self,
        model: Any,
        posterior: Centre,
        priors: Mapping[str, Centre],
        shape: Shape,
        scale: float,
        draws: int,
        support: float = 0.0,
    ) -> dict[str, Certificate]:
        """A certificate for each prior on the second half's examples; Q is the same in all, and so is `support`."""
        options, examples = self.options, self.second.examples
        risk = stochastic_risk(
            model,
            named(model, posterior),
            posterior,
            shape,
            scale,
            examples,
            options.losses,
            draws=draws,
            delta=delta_of_draws(options.delta),
            seed=self.seed + 1,
            advance=self.advance,
        )
        return {
            name: certify(
                name,
                posterior,
                prior,
                shape,
                scale,
                risk,
                len(examples),
                delta=options.delta,
                most=options.losses.most,
                support=support,
            )
            for name, prior in priors.items()
        }


def every(model: Any) -> dict[str, Any]:
    """Canonical name -> parameter, of all that noise can be on."""
    return {canonical(name): p for name, p in model.named_parameters() if p.is_floating_point()}


def named(model: Any, values: Centre) -> dict[str, Any]:
    """The model's parameters of these names, live."""
    return {name: p for name, p in every(model).items() if name in values}
