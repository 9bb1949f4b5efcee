"""One process's part in a study: it claims runs, has them done by its workers, and writes down what is done."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from holdfast.errors import HoldfastError
from holdfast.files import write_json
from holdfast.frontier import results as written
from holdfast.frontier import study as studies
from holdfast.frontier.combination import Combination
from holdfast.frontier.ledger import ERROR, combination_of
from holdfast.frontier.pool import Event, Pool
from holdfast.frontier.queue import Claim, Queue
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.trial import Job

POLL = 3.0  # seconds between two looks for runs that others have planned or lost
TICK = 0.5  # seconds that one wait for events takes at most
RUNS, ANCHORS = "trials", "anchors"  # folders in OUT


class Watch(Protocol):
    """Who is told how the study goes."""

    def begin(self, total: int, done: int) -> None:
        """So many runs there are, and so many were settled before: done, or failed for good."""

    def done(self, count: int) -> None:
        """So many are settled by now, by whomever."""

    def say(self, message: str) -> None:
        """A line to read."""

    def start(self, run: Combination) -> None:
        """A run has begun here."""

    def step(self, run: Combination, step: int, steps: int) -> None:
        """A run has come to a step."""

    def row(self, run: Combination, row: dict[str, Any]) -> None:
        """A run is done."""

    def failed(self, run: Combination, message: str) -> None:
        """A run can't be done."""

    def lost(self, run: Combination) -> None:
        """A run's process died; it waits again."""


def plan(recipe: FrontierRecipe, queue: Queue) -> None:
    """Have every setting run that is to be run whatever is found, or that anybody has begun, with every seed."""
    settings = dict.fromkeys([*recipe.planned(), *queue.ledger.settings()])
    queue.add(Combination(setting, seed) for seed in recipe.seeds for setting in settings)


class Run:
    """This process's part in a study."""

    def __init__(self, recipe: FrontierRecipe, out: Path, queue: Queue, pool: Pool, watch: Watch) -> None:
        self.recipe, self.out, self.queue, self.pool, self.watch = recipe, out, queue, pool, watch
        queue.storage.heartbeat_stale_trial_callback = queue.stale
        self.looked = -POLL  # when it was last looked for runs
        self.waiting = False  # whether it was said that others are waited for
        self.sequences = studies.sides_of(queue.study, queue.url)["target"]["sequences"]

    def all(self, *, retry: bool) -> None:
        """Until every run is done or has failed, here or elsewhere."""
        if retry:
            self.queue.retry()
        plan(self.recipe, self.queue)
        self.watch.begin(self.recipe.settings * len(self.recipe.seeds), self.queue.ledger.settled())
        try:
            while self._fill() or self.queue.held or self._others():
                self._follow()
        except BaseException:
            self.pool.close()
            with suppress(HoldfastError):  # where the storage is gone, the runs will be missed there
                for claim in list(self.queue.held.values()):
                    self.queue.release(claim)
                self.written(report=False)
            raise

    def _fill(self) -> bool:
        """Give idle processes something to do, where it is time to look; whether there was something."""
        if not self.pool.free or time.monotonic() - self.looked < POLL:
            return False
        self.queue.recover()
        self.watch.done(self.queue.ledger.settled())
        found = False
        while self.pool.free and (claim := self.queue.claim() or self._proposed()):
            self._start(claim)
            found = True
        self.looked = time.monotonic()
        return found

    def _proposed(self) -> Claim | None:
        recipe = self.recipe
        if not recipe.ranged() or len(self.queue.ledger.settings()) >= recipe.settings:
            return None
        claim = self.queue.propose(self._sampler, recipe.seeds[0])
        plan(self.recipe, self.queue)
        return claim

    def _sampler(self, number: int) -> Any:
        """Each suggestion has a seed of its own, the same whoever makes it: machines don't suggest the same."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=self.recipe.seeds[0] + number, constant_liar=True)

    def _start(self, claim: Claim) -> None:
        run = claim.combination
        values = self.recipe.tune_recipe(run, self.sequences).model_dump(mode="json", exclude_defaults=True)
        self.watch.start(run)
        self.waiting = False
        self.pool.send(Job(claim.trial, values, self.out / RUNS / run.name, self.out / ANCHORS), claim.trial)

    def _others(self) -> bool:
        """Whether other processes are at runs, which may die and then wait again."""
        others = self.queue.ledger.trials("RUNNING")
        if others and not self.waiting:
            hosts = sorted({trial.user_attrs.get("place", {}).get("host", "another machine") for trial in others})
            self.watch.say(
                f"Waiting for {len(others)} runs elsewhere ({', '.join(hosts)}); Ctrl-C leaves them to it, and the "
                "same command fetches their results later."
            )
            self.waiting = True
        return bool(others) or bool(self.queue.ledger.trials("WAITING"))

    def _follow(self) -> None:
        if not self.pool.busy:
            time.sleep(TICK)
        for event in self.pool.events(TICK):
            self._happened(event)
        self.queue.beat()

    def _happened(self, event: Event) -> None:
        claim = self.queue.held[event.key]
        run = claim.combination
        if event.kind == "step":
            self.watch.step(run, event.step, event.steps)
            return
        self.looked = -POLL  # a process is idle
        if event.kind == "done":
            self.queue.done(claim, event.value)
            self.watch.row(run, event.value)
            self.written(report=False)
        elif event.kind == "failed":
            self._failed(claim, event.value)
        elif self.queue.died(claim, event.value):
            self.watch.lost(run)
        else:
            self.watch.failed(run, f"its process died again and again, at last {event.value}")

    def _failed(self, claim: Claim, message: str) -> None:
        self.queue.end(claim, {ERROR: message})
        self.watch.failed(claim.combination, message)

    def written(self, *, report: bool) -> dict[str, Any]:
        """results.json of what is done so far, by whomever, and with `report` its page.

        Raises:
            HoldfastError: nothing could be done, and the page is asked for.
        """
        ledger = self.queue.ledger
        rows = written.ordered(self.recipe, ledger.rows())
        failures = [(combination_of(trial), trial.user_attrs[ERROR]) for trial in ledger.failures()]
        if report and not rows:
            run, message = failures[0]
            raise HoldfastError(
                f"no run could be done; {run.words} failed: {message.splitlines()[0]}",
                causes=[f"{len(failures)} runs failed, each with a log in its folder: {self.out / RUNS / run.name}"],
                remedy="mend what the message names; --retry-failed then does them again",
            )
        results = written.whole(self.recipe, rows, studies.sides_of(self.queue.study, self.queue.url), failures)
        write_json(self.out / "results.json", results)
        if report:
            from holdfast.tuned import write_report

            write_report(results, self.out, self.watch.say)
        return results
