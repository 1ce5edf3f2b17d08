"""Tuning: two workers against one, what the cache saves, and the hypervolume against random search.

    python benchmarks/tune.py --task digits --model digits_cnn
    COMPRESSION_DATA=PATH python benchmarks/tune.py --task cifar10 --model resnet8 --limit 2000

The grid of 30 trials is gone through by one worker and by two, each with an empty cache: the front must be the same.
Then TPE and random search get as many trials over the whole ranges, with the same seeds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import optuna
from optuna.trial import TrialState

STORAGE = "sqlite:///tune-benchmark.db"
RECIPE = "structured:target=channels,criterion=l1+finetune:epochs=1,learning_rate=0.05"
RECIPE += "+static:observer=mse,granularity=channel,calibration_samples=128"
GRID = "structured.sparsity=0.2/0.3/0.4/0.5/0.6,static.bits=4/6/8,static.activation_bits=6/8"
RANGES = "structured.sparsity=0.2..0.8,static.bits=2..8,static.activation_bits=4..8"


def worker(study: str, home: str, options: list[str]) -> subprocess.Popen:
    environment = os.environ | {"OPTUNA_STORAGE": STORAGE, "COMPRESSION_HOME": home}
    words = [sys.executable, "entrypoints/tune.py", RECIPE, "--study", study, "--threads", "1", *options]
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)


def run(study: str, workers: int, options: list[str]) -> float:
    """Seconds that `workers` take together, from the start of the first process to the end of the last."""
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        started = [worker(study, home, options) for _ in range(workers)]
        codes = [one.wait() for one in started]
    if any(codes):
        raise click.ClickException(f"a worker of {study} ended with exit code {max(codes)}")
    return time.perf_counter() - began


def trials(study: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study, storage=STORAGE).get_trials(states=(TrialState.COMPLETE,))


def front(study: str) -> list[tuple[float, ...]]:
    """(accuracy, MB) of the trials that no other beats, the smallest first."""
    best, found = -1.0, []
    for accuracy, size in sorted({tuple(t.values) for t in trials(study)}, key=lambda v: (v[1], -v[0])):
        if accuracy > best:
            best = accuracy
            found.append((accuracy, size))
    return found


def hypervolume(study: str, largest: float) -> float:
    """Area between the front and (accuracy 0, `largest` MB), as a share of the whole: 1 is perfect at no size."""
    points = [(a, s) for a, s in front(study) if s < largest]
    ends = [s for _, s in points[1:]] + [largest]
    return sum(a * (end - s) for (a, s), end in zip(points, ends, strict=True)) / largest


def saved(study: str) -> tuple[int, float, float]:
    """Trials that took steps from the cache, seconds that these steps would have taken, seconds of all steps."""
    import mlflow

    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.study = '{study}' and tags.stage = 'trial'",
        output_format="list",
    )
    seconds = [r.data.metrics["cached_seconds"] for r in runs]
    return sum(s > 0 for s in seconds), sum(seconds), sum(r.data.metrics["seconds"] for r in runs)


@click.command()
@click.option("--task", default="digits", show_default=True)
@click.option("--model", default="digits_cnn", show_default=True)
@click.option("--limit", default=0, help="use only so many examples; 0: all")
@click.option("--trials", "count", default=30, show_default=True)
@click.option("--seeds", default=2, show_default=True, help="of TPE against random search; 0: the grid alone")
def main(task: str, model: str, limit: int, count: int, seeds: int) -> None:
    told = ["--task", task, "--model", model, *(["--limit", str(limit)] if limit else [])]
    common = [*told, "--trials", str(count)]
    Path("tune-benchmark.db").unlink(missing_ok=True)
    subprocess.run([sys.executable, "entrypoints/train.py", *told, "--threads", "1"], check=True)
    mark = str(int(time.time()))
    for workers in (1, 2):
        name = f"grid-{workers}-{mark}"
        seconds = run(name, workers, [*common, "--sampler", "grid", "--space", GRID])
        hits, spared, whole = saved(name)
        print(f"{workers} worker(s): {seconds:.0f} s, {len(trials(name))} trials; {hits} began from the cache, which "
              f"spared {spared:.0f} of {whole:.0f} s of steps", flush=True)  # fmt: skip
    print("the same front:", front(f"grid-1-{mark}") == front(f"grid-2-{mark}"), flush=True)
    largest = max(size for _, size in front(f"grid-1-{mark}")) * 2
    for sampler in ("tpe", "random") if seeds else ():
        found = []
        for seed in range(seeds):
            name = f"{sampler}-{seed}-{mark}"
            run(name, 1, [*common, "--sampler", sampler, "--space", RANGES, "--seed", str(seed)])
            found.append(hypervolume(name, largest))
        print(f"hypervolume, {sampler}: {statistics.mean(found):.4f} of {[round(f, 4) for f in found]}", flush=True)


if __name__ == "__main__":
    main()
