"""What labelling an unlabelled folder costs, by a labeller who answers truly through the interface of the session.

    python benchmarks/labelling.py questions DATA [--seeds 5]
    python benchmarks/labelling.py actions DATA [--seeds 3]
    python benchmarks/labelling.py honest DATA [--seeds 20]
    python benchmarks/labelling.py coverage DATA [--sessions 200]
    python benchmarks/labelling.py trained DATA [--seeds 8]
    python benchmarks/labelling.py refit
    python benchmarks/labelling.py opening [--images 50000]

DATA has the folders ``train`` and ``val`` with a folder for each class. The images of ``train`` are listed as
unlabelled. ``questions``: labels until the classifier of the session is right on a share of val, with the queue "ask"
and with images drawn at random. ``actions``: keys and clicks until all images are labelled. ``honest``: accuracy shown
against accuracy on val. ``coverage``: the same in many sessions, each on two thirds of all images, against the last
third; features are computed once. ``trained``: accuracy with 100 more labels of images that the session asks about, or
that a model asks about that was trained after the first 150. ``refit``: time until suggestions are ready. ``opening``:
time until the first images can be served.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

import numpy as np
from PIL import Image

from headstart.labelling import LabellingSession
from headstart.labelling.clusters import Clusters
from headstart.labelling.frozen_pass import FrozenPass, PassResult
from headstart.labelling.learner import Learner, Learnt, LearnTask, PseudoLabelPool
from headstart.labelling.learning import SessionLearning
from headstart.labelling.queues import Candidates, informative
from headstart.labelling.stacks import Stacks
from headstart.training.probe import fit_probe

BATCH, PAGE = 5, 60
"""Questions between two fits (the page fits after each, and asks for some ahead); images of a page of confirm."""

EXAMPLES, QUESTIONS = 9, 160
"""Images of a cluster that are labelled at the start, and questions answered before the first page is confirmed."""

ASK_BELOW = 0.5
"""Mean probability of a page below which the labeller answers single questions instead."""


class TrueLabeller:
    """Answers truly; counts keys and clicks.

    Args:
        session: started.
    """

    def __init__(self, session: LabellingSession) -> None:
        self.session, self.actions = session, Counter[str]()
        assert session.wait_ready()

    @property
    def learning(self) -> SessionLearning:
        assert self.session.learning is not None
        return self.session.learning

    def truth(self, image: int) -> str:
        """The name of the class folder."""
        return Path(self.session.address(image)).parent.name

    def answer(self, images: Sequence[int], source: str) -> None:
        """One key for each image; one action for each class, and one fit for all."""
        for name in dict.fromkeys(map(self.truth, images)):
            chosen = [image for image in images if self.truth(image) == name]
            self.session.act({"do": "label", "images": chosen, "label": name, "source": source})
        self.actions[source] += len(images)
        assert self.session.wait_learnt(300)

    def confirm(self, label: str, images: Sequence[int]) -> None:
        """A page of suggestions: the class key for each wrong image, pointed at, then Enter for the others."""
        wrong = [image for image in images if self.truth(image) != label]
        for image in wrong:
            self.session.act({"do": "label", "images": [image], "label": self.truth(image), "source": "confirm"})
        right = [image for image in images if self.truth(image) == label]
        self.session.act({"do": "confirm", "label": label, "images": right, "rejected": []})
        self.actions["confirm: wrong"] += len(wrong)
        self.actions["confirm"] += 1
        assert self.session.wait_learnt(300)

    def name_group(self, images: Sequence[int]) -> None:
        """The images of a group that are shown: a click for each that is left out, then the class key."""
        label = Counter(map(self.truth, images)).most_common(1)[0][0]
        right = [image for image in images if self.truth(image) == label]
        self.session.act({"do": "label", "images": right, "label": label, "source": "cluster"})
        self.actions["cluster: left out"] += len(images) - len(right)
        self.actions["cluster"] += 1
        assert self.session.wait_learnt(300)

    def blind(self) -> None:
        """Labels the blind sample."""
        self.answer([item["id"] for item in self.session.blind(1000)["items"]], "blind")


@contextmanager
def opened(folder: Path | list[str], seed: int) -> Iterator[TrueLabeller]:
    with tempfile.TemporaryDirectory() as out:
        session = LabellingSession.open(folder, labels=Path(out) / "labels.csv", seed=seed)
        session.start()
        try:
            yield TrueLabeller(session)
        finally:
            session.close()


def val_set(data: Path) -> tuple[np.ndarray, list[str]]:
    """Features and labels of val."""
    with opened(data / "val", 0) as labeller:
        result = labeller.learning.result
        return result.features, [labeller.truth(image) for image in range(len(result.keys))]


def accuracy(labeller: TrueLabeller, features: np.ndarray, truth: list[str]) -> float:
    predicted = labeller.learning.predict(features)
    return float(np.mean([one == other for one, other in zip(predicted, truth, strict=True)]))


def questions(data: Path, seeds: int, target: float, most: int) -> None:
    features, truth = val_set(data)
    needed: dict[str, list[int]] = {"ask": [], "random": []}
    for seed in range(seeds):
        for way in needed:
            with opened(data / "train", seed) as labeller:
                rng, curve = np.random.default_rng(seed), []
                open_ = np.flatnonzero(labeller.learning.is_open())
                drawn = rng.permutation(open_).tolist()
                for count in range(BATCH, (most if way == "random" else most // 2) + 1, BATCH):
                    if way == "ask":
                        batch = [item["id"] for item in labeller.session.ask(BATCH)["items"]]
                    else:
                        batch = drawn[count - BATCH : count]
                    labeller.answer(batch, "ask")
                    curve.append((labeller.actions["ask"], accuracy(labeller, features, truth)))
                    if curve[-1][1] >= target:
                        break
                needed[way].append(curve[-1][0])
                shown = ", ".join(
                    f"{n} {100 * share:.1f}" for n, share in curve if n % 100 < BATCH or n == curve[-1][0]
                )
                print(f"seed {seed}, {way}: {curve[-1][0]} labels ({shown})", flush=True)
    ratios = [ask / random for ask, random in zip(needed["ask"], needed["random"], strict=True)]
    print(f"labels for {100 * target:.0f} % of val: {needed}; mean { ({k: mean(v) for k, v in needed.items()}) }")
    print(f"ratio of means {mean(needed['ask']) / mean(needed['random']):.2f}; of each seed {np.round(ratios, 2)}")


def label_all(labeller: TrueLabeller) -> None:
    """Labels everything: blind sample, one page for each cluster, questions, then pages to confirm."""
    session = labeller.session
    labeller.blind()
    for cluster in session.clusters():
        labeller.name_group(cluster["examples"][: min(EXAMPLES, cluster["unlabelled"])])
    while total := session.ask(1)["total"]:
        page = session.confirm(None, PAGE)
        chances = [item["suggestion"]["probability"] for item in page["items"]]
        if labeller.actions["ask"] >= min(QUESTIONS, total) and chances and mean(chances) >= ASK_BELOW:
            labeller.confirm(page["label"], [item["id"] for item in page["items"]])
        else:
            labeller.answer([item["id"] for item in session.ask(BATCH)["items"]], "ask")


def actions(data: Path, seeds: int) -> None:
    for seed in range(seeds):
        with opened(data / "train", seed) as labeller:
            label_all(labeller)
            session = labeller.session
            items = session.images("labelled", 0, 1_000_000)["items"]
            right = sum(item["label"] == [labeller.truth(item["id"])] for item in items)
            rows, share = session.files.table.read_text().count("\n") - 1, 100 * right / len(items)
            print(
                f"seed {seed}: {sum(labeller.actions.values())} actions for {rows} images, {share:.2f} % of "
                f"{len(items)} stacks right; {dict(labeller.actions)}",
                flush=True,
            )


def honest(data: Path, seeds: int, labels: int) -> None:
    features, truth = val_set(data)
    inside = 0
    for seed in range(seeds):
        with opened(data / "train", seed) as labeller:
            labeller.blind()
            while labeller.actions["ask"] < labels:
                labeller.answer([item["id"] for item in labeller.session.ask(BATCH)["items"]], "ask")
            shown, reached = labeller.session.state()["accuracy"], accuracy(labeller, features, truth)
            others = np.flatnonzero(labeller.learning.is_open())
            learnt = labeller.learning.learnt
            assert learnt is not None
            guesses = learnt.probabilities[others].argmax(axis=1)
            others_right = np.mean(
                [learnt.classes[g] == labeller.truth(int(i)) for g, i in zip(guesses, others, strict=True)]
            )
            inside += shown["low"] <= reached <= shown["high"]
            print(
                f"seed {seed}: {shown['sentence']}; on val {100 * reached:.1f} %; on the images without a label, "
                f"of which the difficult ones were asked for, {100 * others_right:.1f} %",
                flush=True,
            )
    print(f"{inside} of {seeds} have the accuracy on val inside the interval")


@contextmanager
def known_features(data: Path) -> Iterator[tuple[PassResult, dict[str, int]]]:
    """Computes the images of train and val once; sessions inside take their features from there.

    Yields the result and the place of each image in it, without near-duplicates of others.
    """
    with tempfile.TemporaryDirectory() as out:
        everything = LabellingSession.open([data / "train", data / "val"], labels=Path(out) / "labels.csv")
        everything.start()
        whole = TrueLabeller(everything).learning.result
        numbers = np.flatnonzero(whole.usable & (whole.stacks.first == np.arange(len(whole.keys))))
        place = {everything.address(int(i)): int(i) for i in numbers}
        everything.close()

    def known(self: FrozenPass) -> PassResult:
        rows = np.array([place[address] for address in self.images.addresses])
        stacks = Stacks.of_pairs(len(rows), [])
        usable, keys = np.ones(len(rows), bool), [whole.keys[row] for row in rows]
        return PassResult(keys, {}, stacks, whole.features[rows], usable, whole.sizes[rows])

    with patch.object(FrozenPass, "_computed", known):
        yield whole, place


WAYS = ("session", "uncertain", "contradicted", "wrong")


def trained(data: Path, seeds: int, first: int = 150, more: int = 100) -> None:
    """What images a model asks about that ``headstart train`` fits to the first labels: those it is uncertain about, or
    whose suggestion it contradicts. "wrong": suggestions that are wrong, as a perfect model would contradict them.
    """
    with known_features(data) as (whole, place):
        train = sorted(address for address in place if Path(address).is_relative_to(data / "train"))
        val = sorted(place.keys() - set(train))
        features, truth = whole.features[[place[one] for one in val]], [Path(one).parent.name for one in val]
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for seed in range(seeds):
            for way in WAYS:
                with opened(train, seed) as labeller:
                    labeller.blind()
                    while labeller.actions["ask"] < first:
                        labeller.answer([item["id"] for item in labeller.session.ask(BATCH)["items"]], "ask")
                    classes, weight, bias = probe_of(labeller)
                    logits = labeller.learning.result.features @ weight.T + bias
                    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
                    chances = (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32)
                    while labeller.actions["ask"] < first + more:
                        labeller.answer(asked_by(way, labeller, classes, chances), "ask")
                    classes, weight, bias = probe_of(labeller)
                    predicted = [classes[i] for i in (features @ weight.T + bias).argmax(axis=1)]
                    right = float(np.mean([one == other for one, other in zip(predicted, truth, strict=True)]))
                    found[way].append((accuracy(labeller, features, truth), right))
            for way, pairs in found.items():
                suggestions, probe = (100 * mean(column) for column in zip(*pairs, strict=True))
                print(
                    f"{seed + 1} seeds, {way}: suggestions {suggestions:.2f} %, trained again {probe:.2f} %", flush=True
                )


def probe_of(labeller: TrueLabeller) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Classes, weight and bias of the linear probe of ``headstart train`` on the labels without the blind sample."""
    task = labeller.learning._task()
    probe = fit_probe(labeller.learning.result.features[task.images], task.labels, classes=len(task.classes))
    return task.classes, probe.weight, probe.bias


def asked_by(way: str, labeller: TrueLabeller, classes: tuple[str, ...], chances: np.ndarray) -> list[int]:
    """The next questions; those of the session when a way has none left."""
    learning = labeller.learning
    open_, learnt = np.flatnonzero(learning.is_open()), learning.learnt
    assert learnt is not None
    suggested = np.array(learnt.classes)[learnt.probabilities[open_].argmax(axis=1)]
    if way == "uncertain":
        return informative(Candidates(open_, classes, chances[open_]), learning.vectors, BATCH)
    if way == "session":
        different = np.zeros(len(open_), bool)
    elif way == "contradicted":
        different = suggested != np.array(classes)[chances[open_].argmax(axis=1)]
    else:
        different = suggested != np.array([labeller.truth(int(image)) for image in open_])
    certain = np.argsort(-chances[open_].max(axis=1), kind="stable")
    asked = [int(open_[row]) for row in certain if different[row]][:BATCH]
    return asked or [item["id"] for item in labeller.session.ask(BATCH)["items"]]


def coverage(data: Path, sessions: int, labels: int, batch: int = 50) -> None:
    """Sessions through the interface, on images whose features are known."""
    inside, shown_all, reached_all = [], [], []
    with known_features(data) as (whole, place):
        for seed in range(sessions):
            mixed = np.random.default_rng(seed).permutation(np.array(list(place)))
            kept, unseen = sorted(map(str, mixed[: 2 * len(mixed) // 3])), list(map(str, mixed[2 * len(mixed) // 3 :]))
            with opened(kept, seed) as labeller:
                labeller.blind()
                while labeller.actions["ask"] < labels:
                    labeller.answer([item["id"] for item in labeller.session.ask(batch)["items"]], "ask")
                shown = labeller.session.state()["accuracy"]
                truth = [Path(address).parent.name for address in unseen]
                reached = accuracy(labeller, whole.features[[place[address] for address in unseen]], truth)
            inside.append(shown["low"] <= reached <= shown["high"])
            shown_all.append(shown["correct"] / shown["count"])
            reached_all.append(reached)
            if seed % 10 == 9 or seed == sessions - 1:
                print(
                    f"{sum(inside)} of {len(inside)} inside; shown {100 * mean(shown_all):.2f} %, on unseen images "
                    f"{100 * mean(reached_all):.2f} %",
                    flush=True,
                )


def refit(images: int = 10_000, classes: int = 20, labels: int = 2000, rounds: int = 10) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, 256))
    truth = rng.integers(classes, size=images)
    vectors = (centres[truth] + 2 * rng.normal(size=(images, 256))).astype(np.float32)
    groups = Clusters.of_vectors(vectors, np.arange(images), 0).cluster_of(images)
    done: list[tuple[float, Learnt]] = []
    learner = Learner(vectors, lambda learnt: done.append((time.perf_counter(), learnt)))
    time.sleep(5)  # the page shows the grid meanwhile
    taken, processor = [], []
    for _ in range(rounds):
        chosen = rng.permutation(images)[:labels]
        started, used = time.perf_counter(), time.process_time()
        pool = PseudoLabelPool(np.setdiff1d(np.arange(images), chosen), groups)
        learner.submit(LearnTask(chosen, truth[chosen], tuple(map(str, range(classes))), pool))
        assert learner.wait(300)
        taken.append(done[-1][0] - started)
        processor.append(time.process_time() - used)
    learner.close()
    print(f"{done[-1][1].num_pseudo} pseudo-labels")
    print(f"wall seconds: median {median(taken):.2f}, {min(taken):.2f} to {max(taken):.2f}")
    print(f"processor seconds: median {median(processor):.2f}, {min(processor):.2f} to {max(processor):.2f}")


def opening(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data, rng = Path(folder) / "images", np.random.default_rng(0)
        for number in range(count):
            at = data / f"{number // 1000:02d}"
            at.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)).save(at / f"{number}.jpg")
        print(f"{count:,} images written", flush=True)
        started = time.perf_counter()
        session = LabellingSession.open(data, cache=Path(folder) / "cache")
        session.start()
        seen = -1
        while not (items := session.images("all", 0, 60)["items"]):
            seen = session.wait_change(seen, 1)
        first = time.perf_counter() - started
        for item in items:
            session.thumbnail(item["id"], 160)
        served = time.perf_counter() - started
        while session.state()["images"] < count:
            seen = session.wait_change(seen, 1)
        print(
            f"first images listed after {first:.2f} s, 60 thumbnails after {served:.2f} s, "
            f"all listed after {time.perf_counter() - started:.2f} s"
        )
        session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["questions", "actions", "honest", "coverage", "trained", "refit", "opening"])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=200, help="of coverage")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy on val")
    parser.add_argument("--most", type=int, default=1400, help="labels drawn at random, at most")
    parser.add_argument("--labels", type=int, default=200, help="of each session of honest")
    parser.add_argument("--images", type=int, default=50_000)
    given = parser.parse_args()
    if given.what == "refit":
        refit()
    elif given.what == "opening":
        opening(given.images)
    elif given.what == "questions":
        questions(given.data, given.seeds, given.target, given.most)
    elif given.what == "actions":
        actions(given.data, given.seeds)
    elif given.what == "coverage":
        coverage(given.data, given.sessions, given.labels)
    elif given.what == "trained":
        trained(given.data, given.seeds)
    else:
        honest(given.data, given.seeds, given.labels)


if __name__ == "__main__":
    main()
