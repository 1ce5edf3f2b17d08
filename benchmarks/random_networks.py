"""Random networks through every method, at settings that lose next to nothing: the same answers, or a refusal.

    python -m benchmarks.random_networks 0 1000

prints each network and recipe that is neither, and the counts.
"""

import copy
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from compression import methods
from compression.errors import UserError
from compression.runs.machine import accelerator
from compression.training.context import Context
from tests.conftest import Kept, kept_child, stripes_task
from tests.methods.test_other_networks import BOUND, difference
from tests.methods.test_random_networks import LOSSLESS
from tests.random_networks import random_network

warnings.simplefilter("ignore")


def outcome(seed, recipe, task):
    """What became of a network: same, refused, or how it went wrong."""
    model = random_network(seed)
    with tempfile.TemporaryDirectory() as folder:
        record = Kept()
        context = Context(
            task, copy.deepcopy(model), accelerator(True, "no"), record, 0, Path(folder), None, None, kept_child
        )
        [step] = methods.parse(recipe)
        try:
            made = step.resolved(task).apply(copy.deepcopy(model).requires_grad_(True), context).eval()
        except UserError:
            return "refused"
        except Exception as error:  # noqa: BLE001 - what is counted
            return f"{type(error).__name__}: {str(error)[:100]}"
    lost = difference(model, made, task)
    return "same" if lost < BOUND else f"logits differ by {lost:.0%}"


if __name__ == "__main__":
    task, counts = stripes_task(), Counter()
    for seed in range(*map(int, sys.argv[1:3])):
        for recipe in LOSSLESS:
            found = outcome(seed, recipe, task)
            counts[found if found in ("same", "refused") else "wrong"] += 1
            if found not in ("same", "refused"):
                print(seed, recipe, found, flush=True)
    print(dict(counts))
