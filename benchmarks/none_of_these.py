"""Whether "none of these" keeps what it promises: 95 % of usual images, on images that nothing was fitted to.

    python benchmarks/none_of_these.py FOLDER... [--splits 10] [--effort probe] [--strangers FOLDER...]

All images of each folder (splits that it comes with are forgotten) are drawn into train, val and test again for each
seed; the model says for each test image whether it is one of "none of these". The promise is kept in a split where it
lies inside the 95 % Wilson interval of the measured share. With --strangers, the share of other images that the model
of the first split takes for strange is printed as well.

The folder "digits" is made where it does not exist: scikit-learn's digits, as ``headstart demo`` writes them. With
effort "probe" the nearest class mean takes the place of logistic regression: distances do not depend on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from headstart.data.dataset import Dataset, open_data
from headstart.data.listing import find_images
from headstart.demo import write_digits
from headstart.engine.plan import EnginePlan
from headstart.evaluation.metrics import wilson
from headstart.model import Model, load
from headstart.pipeline.choose_layers import choose_and_fit
from headstart.pipeline.evaluate import TrainedClassifier, evaluate
from headstart.pipeline.featurise import featurise
from headstart.pipeline.inspect_images import inspect_images
from headstart.pipeline.load import Job
from headstart.pipeline.load import load as load_network
from headstart.pipeline.plan import measure, plan
from headstart.pipeline.train import train
from headstart.prediction import INLIER_SHARE
from headstart.progress import SilentProgress
from headstart.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--effort", default="probe")
    parser.add_argument("--strangers", nargs="*", default=[], type=Path)
    given = parser.parse_args()
    rows = []
    print(f"{'data':<14}{'splits':>8}{'inside':>8}{'kept':>9}  range")
    for folder in given.data:
        if folder.name == "digits" and not folder.exists():
            write_digits(folder)
        dataset = replace(open_data(folder), splits=None)
        shares, inside = [], 0
        engines: list[EnginePlan] = []
        for seed in range(given.splits):
            model, scores = judged(dataset, given.effort, seed, engines)
            if seed == 0:
                first = model
            kept = int((scores <= INLIER_SHARE).sum())
            low, high = wilson(kept, len(scores))
            inside += low <= INLIER_SHARE <= high
            shares.append(kept / len(scores))
        rows.append({"data": folder.name, "inside": inside, "splits": given.splits, "kept": shares})
        low, high = 100 * min(shares), 100 * max(shares)
        print(
            f"{folder.name:<14}{given.splits:>8}{inside:>8}{100 * np.mean(shares):>8.1f} %  {low:.1f}-{high:.1f} %",
            flush=True,
        )
        for strangers in given.strangers:
            _, odd, faults = first.predict_with_outliers([str(path) for path in find_images(strangers)])
            seen = np.delete(odd, list(faults))
            found = int((seen > INLIER_SHARE).sum())
            print(f"    {strangers}: {found} of {len(seen)} taken for strange")
            rows[-1][f"strangers {strangers.name}"] = [found, len(seen)]
    total = sum(row["inside"] for row in rows)
    print(f"The promise lies inside the measured interval in {total} of {given.splits * len(rows)} splits.")
    print(json.dumps(rows))


def judged(dataset: Dataset, effort: str, seed: int, engines: list[EnginePlan]) -> tuple[Model, np.ndarray]:
    """(model, outlier scores of the test images) of one drawn split; the engines of the first serve the others too."""
    if effort == "probe":
        job = Job(dataset, Recipe(probe="centroid", seed=seed), "auto", None, SilentProgress())
        loaded = load_network(job)
        inspected = inspect_images(job, loaded)
        measured = measure(job, loaded, inspected, engines[0] if engines else None)
        engines.append(measured.engines)
        planned = plan(job, loaded, inspected, measured)
        prepared = choose_and_fit(job, loaded, inspected, planned, featurise(job, loaded, inspected, planned))
        finished = evaluate(prepared, TrainedClassifier(prepared.loaded.backbone, prepared.fitted.head))
        return finished.model, next(part.outliers for part in finished.evaluated if part.scores.name == "test")
    with tempfile.TemporaryDirectory() as folder:
        run = train(dataset, out=Path(folder) / "run", recipe=Recipe(effort=effort, seed=seed))
        with open(run.folder / "predictions.csv", encoding="utf-8", newline="") as file:
            scores = [float(row["outlier"]) for row in csv.DictReader(file) if row["split"] == "test"]
        return load(run.folder), np.array(scores)


if __name__ == "__main__":
    main()
