"""What the certificates say: a paragraph, a table and a picture of their parts."""

from typing import TYPE_CHECKING, Any

from holdfast.analysis.figure import Bars, Level, Panel, color
from holdfast.analysis.leaving import Finding, Table
from holdfast.analysis.pac_bayes.certificate import Certificate, as_figures

if TYPE_CHECKING:
    from holdfast.analysis.pac_bayes.study import Certified


def finding(certified: "Certified", settings: dict[str, Any]) -> Finding:
    """The certificates as files and words."""
    return Finding(
        name="pac-bayes",
        title="What is the tuned model's error on fresh data, at most?",
        question="A PAC-Bayes certificate, and what the prior's centre is worth.",
        words=" ".join([*_headline(certified, settings), *_priors(certified), _terms(certified, settings)]),
        settings=settings,
        figures=figures(certified),
        panels=_panels(certified, settings),
        tables=[_table(certified)],
    )


def figures(certified: "Certified") -> dict[str, Any]:
    """For the JSON file."""
    return {
        "headline": {"space": certified.headline[0], "prior": certified.headline[1], **_one(certified.certificate)},
        "spaces": {
            space: {
                "scale": certified.scales[space],
                "dimensions": certified.dimensions[space],
                "priors": as_figures(found),
            }
            for space, found in certified.found.items()
        },
        "posterior_along": certified.along,
        "divergence_at_all_documents": certified.whole,
        "choice_on_the_second_half": certified.choice,
        "pre_trained_loss": certified.before,
        **certified.facts,
    }


def _one(certificate: Certificate) -> dict[str, Any]:
    return as_figures({"": certificate})[""]


def _headline(certified: "Certified", settings: dict[str, Any]) -> list[str]:
    one, what = certified.certificate, _what(settings)
    sure = f"With probability {_percent(1 - one.delta)} the {what} of the tuned model under noise of scale "
    sure += f"{certified.scales[certified.headline[0]]:.2g} is at most {_show(one.value, one)} on fresh documents"
    most = _show(one.most, one)
    verdict = f"vacuous: no predictor can exceed {most}" if one.vacuous else f"below the {most} of a vacuous bound"
    said = [
        f"{sure}, {verdict}. It was {_show(one.risk, one)} on the {one.n} documents of the bound, and the pre-trained "
        f"model's is {_show(certified.before, one)} there. The documents are {certified.facts['documents']}; those "
        "not of the bound serve the prior."
    ]
    if one.most == 1:
        guess = 1 - certified.facts["common"]
        said.append(
            f"Always guessing the commonest token would be wrong {_show(guess, one)} of the time there: the "
            f"certificate is {'below' if one.value < guess else 'not below'} that."
        )
    if certified.along == 0:
        said.append(
            "The least bound is the prior's own: tuning on the documents of the bound gained less than its KL costs, "
            "so this is a test-set bound of the model tuned on the others."
        )
    if certified.whole is not None:
        said.append(
            f"Centred at the weights tuned on all documents, the posterior would be {certified.whole:.3g} nats away."
        )
    return said


def _priors(certified: "Certified") -> list[str]:
    said = []
    for space, found in certified.found.items():
        parts = [
            f"{one.divergence:.3g} nats from the {name} centre (bound {_show(one.value, one)}"
            f"{', vacuous' if one.vacuous else ''}{_choice(one)})"
            for name, one in found.items()
        ]
        said.append(f"Over {space} ({certified.dimensions[space]:,} numbers), KL is {', '.join(parts)}.")
    weights = next((found for found in certified.found.values() if "random" in found), {})
    if weights:
        ratio = weights["random"].divergence / max(weights["pre-trained"].divergence, 1e-12)
        said.append(f"Pre-training thus shortens the way by a factor of {ratio:.3g} in KL.")
    return said


def _choice(one: Certificate) -> str:
    return f"; {one.support:.3g} of the nats are for the choice of the entries" if one.support else ""


def _terms(certified: "Certified", settings: dict[str, Any]) -> str:
    one, choice = certified.certificate, ""
    if certified.choice is not None:
        choice = (
            "The entries were chosen on the first half, which costs nothing; chosen on the documents of the bound "
            f"they would cost {certified.choice:.3g} nats. "
        )
    return choice + (
        f"What is counted are documents, each with the mean loss of one window: the tokens of a document depend on "
        f"each other, and n is {one.n}, not their number. The certificate is about documents drawn like these, and "
        f"about a model drawn from the noise, not about the one at its centre. {_made_on(certified, settings)} Each "
        f"bound holds by itself, not all at once."
    )


def _made_on(certified: "Certified", settings: dict[str, Any]) -> str:
    """What the bound takes for granted of its prior."""
    others, centre = f"the {certified.facts['first_half']} other documents", settings["prior_adapter"]
    if settings["adapter"] is None:
        made = f"Noise and prior were set on {others}"
    else:
        at = "the pre-trained weights" if centre is None else f"the adapter in {centre}"
        made = f"The noise was set on {others}, and the prior's centre is {at}"
    if certified.facts["curved"]:
        made += f"; their shape is the {settings['prior']} curvature there"
    unseen = "the pre-trained model" + ("" if centre is None else " and that adapter")
    return f"{made}. It presumes that {unseen} never saw the documents of the bound."


def _what(settings: dict[str, Any]) -> str:
    if settings["loss"] == "error":
        return "next-token error"
    return f"loss in nats per token, cut off at {settings['ceiling']:g},"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _show(value: float, one: Certificate) -> str:
    return f"{value:.1%}".replace("%", " %") if one.most == 1 else f"{value:.3f}"


def _panels(certified: "Certified", settings: dict[str, Any]) -> list[Panel]:
    short = {space: "all" if "random" in found else "trained" for space, found in certified.found.items()}
    named = {f"{short[s]}: {name}": one for s, found in certified.found.items() for name, one in found.items()}
    sums: dict[str, dict[str, float]] = {}
    for name, one in named.items():
        total = 0.0
        for part, value in one.parts.items():
            total += value
            sums.setdefault(part, {})[name] = total
    first = next(iter(named.values()))
    # Overlaid from the tallest to the smallest, so that each part shows above the one before.
    marks: list[Any] = [
        Bars(part, list(values), list(values.values()), color(i), opacity=1.0)
        for i, (part, values) in reversed(list(enumerate(sums.items())))
    ]
    marks.append(Level("vacuous", first.most))
    caption = (
        "What the bound consists of, for each centre of the prior, with noise on all weights or on what is trained "
        "alone. A bound that reaches the dotted line says no more than that losses end there. "
        f"In {_what(settings)} from 0 to {first.most:g}."
    )
    divergences = Bars("KL", list(named), [one.divergence or None for one in named.values()], color(0))
    kl_caption = "How far the posterior lies from the prior, which is what pre-training shortens. No bar: it is 0."
    return [
        Panel("The bound, part by part", "", "risk", marks, caption, wide=True, height=460),
        Panel("KL(Q || P)", "", "nats", [divergences], kl_caption, y_scale="log", wide=True, height=320),
    ]


def _table(certified: "Certified") -> Table:
    rows = [
        [space, name, f"{one.divergence:.4g}", _show(one.risk, one), _show(one.sampled, one),
         *(_show(min(one.bounds[key], one.most), one) for key in ("seeger", "mcallester", "linear")),
         "vacuous" if one.vacuous else ""]
        for space, found in certified.found.items()
        for name, one in found.items()
    ]  # fmt: skip
    header = ["noise on", "prior at", "KL", "r(Q)", "at most", "Seeger", "McAllester", "linear", ""]
    return Table(
        f"Certificates, n = {certified.certificate.n}, delta = {certified.certificate.delta:g}", header, rows, 2
    )
