"""The runs of a study in its storage: each is claimed by one process, and ends once."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.frontier.combination import Combination
from holdfast.frontier.ledger import AGAIN, ERROR, TWICE, Ledger, Row, combination_of, is_lost
from holdfast.frontier.place import is_gone, signature
from holdfast.frontier.space import Space
from holdfast.frontier.storage import HEARTBEAT, patiently

SUGGESTIONS = 10  # tried for one that is new
DEATHS = 3  # of its process, after which a run is given up


@dataclass(frozen=True)
class Claim:
    """A run that this process is at: its trial's number in the storage and in the study."""

    trial: int
    number: int
    combination: Combination


class Queue:
    """The study's runs as this process takes, ends and plans them.

    Several processes may work on one storage: claiming is atomic, and of two trials of one combination (two processes
    planned at once) the earlier counts.

    Args:
        study: Optuna's.
        storage: the one that it is in.
        url: of the storage, for errors.
        space: what the study searches.
    """

    def __init__(self, study: Any, storage: Any, url: str, space: Space) -> None:
        self.study, self.storage, self.url, self.space = study, storage, url, space
        self.ledger = Ledger(study, url)
        self.signature = signature()
        self.held: dict[int, Claim] = {}
        self.beaten = -math.inf

    def add(self, combinations: Iterable[Combination]) -> None:
        """Have them run, those that have no trial yet, or only ones whose process died."""
        known = {combination_of(trial) for trial in self.ledger.trials() if not is_lost(trial)}
        for combination in combinations:
            if combination not in known:
                known.add(combination)
                self._add(combination)

    def claim(self) -> Claim | None:
        """A waiting run that is now this process's, None where none waits."""
        for trial in self.ledger.trials("WAITING"):
            # A sign of life first: a process that dies right after its claim is missed all the same.
            self._ask(self.storage.record_heartbeat, trial._trial_id)
            if not self._begin(trial._trial_id):
                continue
            claim = self._held(trial)
            if not self._repeats(claim):
                return claim
            self.end(claim, {ERROR: TWICE})
        return None

    def propose(self, sampler: Callable[[int], Any], seed: int) -> Claim | None:
        """A run of a setting that the sampler suggests, this process's; None where it knows nothing new.

        Args:
            sampler: trial number -> Optuna's sampler.
            seed: of the run; `add` brings the others.
        """
        from optuna.trial import TrialState

        for _ in range(SUGGESTIONS):
            trial = self._ask(self.study.ask)
            self._ask(self.storage.record_heartbeat, trial._trial_id)
            if "way" in trial.user_attrs:  # another process has planned it just now
                return self._held(self._ask(self.storage.get_trial, trial._trial_id))
            known = self.ledger.settings()
            self.study.sampler = sampler(trial.number)
            setting = self._ask(self.space.suggested, trial)
            if setting not in known:
                for key, value in Combination(setting, seed).attributes().items():
                    self._note(trial._trial_id, key, value)
                return self._held(self._ask(self.storage.get_trial, trial._trial_id))
            self._ask(self.study.tell, trial, None, TrialState.FAIL)
        return None

    def beat(self) -> None:
        """A sign of life of every run that this process is at, when it is time for one."""
        if time.monotonic() - self.beaten >= HEARTBEAT:
            self.beaten = time.monotonic()
            for trial in self.held:
                self._ask(self.storage.record_heartbeat, trial)

    def done(self, claim: Claim, row: Row) -> None:
        """The run has ended: its row, and target loss and forgetting as the study's two objectives."""
        values = [row["target_after"], row["source_after"] - row["source_before"]]
        if all(map(math.isfinite, values)):
            self.end(claim, {"row": row}, values)
        else:
            self.end(claim, {ERROR: f"its losses are {values[0]} and {row['source_after']}"})

    def died(self, claim: Claim, how: str) -> bool:
        """The run's process was killed: whether the run waits again, and has not died too often."""
        deaths = self._deaths(claim) + 1
        if deaths >= DEATHS:
            self.end(claim, {ERROR: _too_often(deaths, how)})
            return False
        self.release(claim, deaths)
        return True

    def release(self, claim: Claim, deaths: int | None = None) -> None:
        """The run was interrupted and waits again."""
        deaths = self._deaths(claim) if deaths is None else deaths
        if self.end(claim, {ERROR: "interrupted", AGAIN: True}):
            self._add(claim.combination, deaths)

    def stale(self, study: Any, trial: Any) -> None:
        """Optuna has failed a trial that gave no sign of life: its run waits again. It can't be marked any more."""
        if "way" not in trial.user_attrs:
            return
        deaths = trial.user_attrs.get("deaths", 0) + 1
        if deaths < DEATHS:
            self._add(combination_of(trial), deaths)
        else:
            self._add(combination_of(trial), deaths, error=_too_often(deaths, "without a sign of life"))

    def recover(self) -> None:
        """Have the runs of processes that are gone wait again."""
        from optuna.storages import fail_stale_trials

        for trial in self.ledger.trials("RUNNING"):
            if is_gone(trial.user_attrs.get("place", {})):
                self.died(Claim(trial._trial_id, trial.number, combination_of(trial)), "killed")
        self._ask(fail_stale_trials, self.study)

    def retry(self) -> None:
        """Have the runs that failed wait again."""
        for trial in self.ledger.failures():
            self._add(combination_of(trial))

    def end(self, claim: Claim, notes: dict[str, Any], values: list[float] | None = None) -> bool:
        """A trial ends: with values it is done, else it has failed; whether it is this process that has ended it.

        Where another process took it for dead, its results are found in its folder when it is claimed again.
        """
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        self.held.pop(claim.trial, None)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        try:
            for key, value in notes.items():
                self._note(claim.trial, key, value)
            self._ask(self.storage.set_trial_state_values, claim.trial, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _ask(self, what: Callable[..., Any], *arguments: Any) -> Any:
        return patiently(self.url, what, *arguments)

    def _add(self, combination: Combination, deaths: int = 0, error: str | None = None) -> None:
        from optuna.trial import TrialState, create_trial

        params, spread = self.space.described(combination.setting)
        notes = {**combination.attributes(), "deaths": deaths, **({} if error is None else {ERROR: error})}
        state = TrialState.WAITING if error is None else TrialState.FAIL
        made = create_trial(state=state, params=params, distributions=spread, user_attrs=notes)
        self._ask(self.study.add_trial, made)

    def _begin(self, trial: int) -> bool:
        """Whether a waiting trial is under way from now on, through this process and no other."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            return self._ask(self.storage.set_trial_state_values, trial, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def _held(self, trial: Any) -> Claim:
        claim = Claim(trial._trial_id, trial.number, combination_of(trial))
        self.held[claim.trial] = claim
        self._note(claim.trial, "place", self.signature)
        return claim

    def _note(self, trial: int, key: str, value: Any) -> None:
        self._ask(self.storage.set_trial_user_attr, trial, key, value)

    def _repeats(self, claim: Claim) -> bool:
        """Whether an earlier trial does the same, or any has done it."""
        return any(
            other.number != claim.number and (other.number < claim.number or other.state.name == "COMPLETE")
            for other in self.ledger.trials("WAITING", "RUNNING", "COMPLETE")
            if combination_of(other) == claim.combination
        )

    def _deaths(self, claim: Claim) -> int:
        return self._ask(self.storage.get_trial, claim.trial).user_attrs.get("deaths", 0)


def _too_often(deaths: int, how: str) -> str:
    return f"its process died {deaths} times, at last {how}: too little memory, perhaps"
