"""What a study's storage says of its runs: read, never changed."""

from typing import Any

from holdfast.frontier.combination import Combination, Setting
from holdfast.frontier.storage import patiently

TWICE = "another run of the same"  # why a trial was not run
ERROR, AGAIN = "error", "again"  # attributes: why a trial failed, and that its run is to be done all the same
Row = dict[str, Any]


class Ledger:
    """The trials of a study as runs.

    A run is an Optuna trial with its combination among the attributes; a done one carries its row, a failed one its
    message. A run whose process died is a failed trial marked "again" and a new one that waits.

    Args:
        study: Optuna's.
        url: of its storage, for errors.
    """

    def __init__(self, study: Any, url: str) -> None:
        self.study, self.url = study, url

    def trials(self, *states: str) -> list[Any]:
        """The trials in some states, or all; those that only repeat another are left out."""
        from optuna.trial import TrialState

        wanted = tuple(TrialState[state] for state in states) or None
        found = patiently(self.url, self.study.get_trials, False, wanted)
        return [trial for trial in found if "way" in trial.user_attrs and trial.user_attrs.get(ERROR) != TWICE]

    def settings(self) -> list[Setting]:
        """Every setting that has a trial, in order."""
        return list(dict.fromkeys(combination_of(trial).setting for trial in self.trials()))

    def rows(self) -> list[tuple[Combination, Row]]:
        """The rows of the runs that are done."""
        found = {combination_of(trial): trial.user_attrs["row"] for trial in reversed(self.trials("COMPLETE"))}
        return list(reversed(found.items()))

    def settled(self) -> int:
        """How many runs are done or have failed for good."""
        return len(self.rows()) + len(self.failures())

    def failures(self) -> list[Any]:
        """The trials that failed for good, the last of each combination; one that was done or waits since is none."""
        alive = {combination_of(trial) for trial in self.trials("WAITING", "RUNNING", "COMPLETE")}
        last = {combination_of(trial): trial for trial in self.trials("FAIL") if not is_lost(trial)}
        return [trial for combination, trial in last.items() if combination not in alive]


def combination_of(trial: Any) -> Combination:
    """The run that a trial is of."""
    return Combination.of(trial.user_attrs)


def is_lost(trial: Any) -> bool:
    """Whether a trial ended without an end of its run: its process died, or Optuna missed its signs of life."""
    return trial.state.name == "FAIL" and (AGAIN in trial.user_attrs or ERROR not in trial.user_attrs)
