"""A process of the tests that claims runs of a study until none is left, and prints those that it got."""

import json
import sys
import time

from holdfast.frontier import study as studies
from holdfast.frontier.queue import Queue
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.run import plan
from holdfast.frontier.space import Space
from holdfast.frontier.storage import open_storage

SIDES = {side: {"rows": None, "about": {"description": "rows"}, "sequences": 4} for side in ("source", "target")}
ROW = {"target_after": 4.0, "source_after": 3.2, "source_before": 3.0}


def recipe(**more):
    """Five strengths and two seeds of one way: ten runs."""
    base = {"model": "m", "target": "t", "source": "s"}
    ways = [{"name": "l2", "curvature": "identity", "strength": [float(i) for i in range(1, 6)]}]
    return FrontierRecipe.model_validate({"base": base, "ways": ways, "seeds": 2, **more})


def joined(url, settings):
    """This process's queue of the study, made if nobody has."""
    storage, space = open_storage(url), Space(settings)
    study = studies.find(storage, url, settings) or studies.make(
        storage, url, settings, SIDES, lambda made: plan(settings, Queue(made, storage, url, space))
    )
    found = Queue(study, storage, url, space)
    storage.heartbeat_stale_trial_callback = found.stale
    return found


if __name__ == "__main__":
    _, url, begin = sys.argv
    time.sleep(max(0.0, float(begin) - time.time()))  # all at once
    queue, mine = joined(url, recipe()), []
    while claim := queue.claim():
        mine.append(claim.combination.key)
        queue.done(claim, ROW)
    print(json.dumps(mine))
