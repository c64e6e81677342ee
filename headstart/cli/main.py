"""The command line: one command per verb, thin over the library.

Progress goes to stderr, results to stdout; ``--json`` prints one JSON document. Exit status: 0 done, 1 a named error,
2 usage, 130 stopped by Ctrl-C. ``headstart --help`` imports neither torch nor anything that does.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast, overload

import typer

from headstart.cli.deferred_imports import defer_compiler
from headstart.errors import HeadstartError
from headstart.serve.limits import limit_option, limits_from_options

if TYPE_CHECKING:
    from headstart.cache.entries import CacheEntry
    from headstart.cache.verify import Verified
    from headstart.data.dataset import Dataset
    from headstart.data.inspection import Inspection
    from headstart.evaluation.metrics import AnyScores
    from headstart.evaluation.predictions import Evaluated
    from headstart.prediction import Prediction
    from headstart.verbs.export import Exported

STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""

SHOWN_ITEMS = 8
"""Cases of a finding that are printed."""

WIDEST_NUMBER = 24
"""Characters up to which a column that holds figures is set to the right."""

BROKEN_PIPE = 141
"""Exit status where nobody reads the results any more, as shells have it."""

app = typer.Typer(
    name="headstart",
    help="A folder of labelled images becomes a classifier that you can trust, by transfer learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Device(StrEnum):
    """Where the backbone runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Pool(StrEnum):
    """How features are pooled."""

    auto = "auto"
    avg = "avg"
    max = "max"
    avgmax = "avgmax"
    token = "token"
    flatten = "flatten"


class ProbeOption(StrEnum):
    """What is fitted on frozen features."""

    logistic = "logistic"
    svm = "svm"
    rbf = "rbf"
    knn = "knn"
    centroid = "centroid"


class ToOption(StrEnum):
    """What a model is exported to."""

    onnx = "onnx"
    torch = "torch"


class QuantizeOption(StrEnum):
    """What an exported file computes in, if not in float32."""

    int8 = "int8"


class RangeOption(StrEnum):
    """What becomes black and white of images of more than 8 bits per channel."""

    full = "full"
    data = "data"


class EffortOption(StrEnum):
    """How much is trained."""

    auto = "auto"
    probe = "probe"
    quick = "quick"
    standard = "standard"
    thorough = "thorough"


Data = Annotated[Path, typer.Argument(help="A folder with one folder per class, or a CSV, TSV or Parquet table.")]
RangeChoice = Annotated[
    RangeOption,
    typer.Option(
        "--value-range",
        help="How images of more than 8 bits per channel are scaled: by the full scale of the file, or by the training "
        "data (0.5th to 99.5th percentile of its values).",
    ),
]
PathColumn = Annotated[str, typer.Option("--path-column", help="Of a table: the column of paths, if not named path.")]
LabelColumn = Annotated[
    str, typer.Option("--label-column", help="Of a table: the column of labels, if not named label or labels.")
]
SplitColumn = Annotated[
    str, typer.Option("--split-column", help="Of a table: the column of train, val and test, if not named split.")
]
GroupColumn = Annotated[
    str, typer.Option("--group-column", help="Of a table: the column of groups, if not named group.")
]
RunOrModel = Annotated[Path, typer.Argument(help="A run folder, a model file, or hf://OWNER/NAME.")]
IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="Do not score images of classes that the model does not know.")
]
AllowLoss = Annotated[
    bool, typer.Option("--allow-loss", help="Take an int8 file that loses more than 1 point of accuracy.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
DeviceChoice = Annotated[Device, typer.Option(help="Where the backbone runs.")]
BackboneName = Annotated[str, typer.Option("--backbone", help="A timm architecture; the offline default if left out.")]
WeightsFile = Annotated[
    Path | None, typer.Option("--weights", help="A .safetensors, .pth, .pt or .bin file for the backbone.")
]
ImageSize = Annotated[int, typer.Option(min=0, help="Side of the input in pixels; 0: what the weights expect.")]
PoolChoice = Annotated[Pool, typer.Option(help="How features are pooled; auto: as the weights were trained.")]
Cut = Annotated[str, typer.Option(help="End the backbone at this boundary (see headstart layers).")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the drawn split and of cross-validation's folds.")]
Val = Annotated[
    float | None,
    typer.Option(
        help="Share of the images for val, where the data have none. [default: 0.15; of train and test folders only "
        "where that is at least 100 images]",
        show_default=False,
    ),
]
Test = Annotated[
    float | None,
    typer.Option(
        help="Share of the images for test, where the data come without splits. [default: 0.15]", show_default=False
    ),
]


@app.callback(invoke_without_command=True)
def _start(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("headstart"))
        raise typer.Exit


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="A folder with one folder per class, or a CSV, TSV or Parquet table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder, new or empty; runs/NAME if left out.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this unfinished run, with its own options.")] = None,
    effort: Annotated[
        EffortOption,
        typer.Option(help="How much is trained at most; auto: probe, or quick where a fine-tuning option is given."),
    ] = EffortOption.auto,
    backbone: BackboneName = "",
    weights: WeightsFile = None,
    image_size: ImageSize = 0,
    pool: PoolChoice = Pool.auto,
    cut: Cut = "",
    probe: Annotated[ProbeOption, typer.Option(help="What is fitted on frozen features.")] = ProbeOption.logistic,
    head: Annotated[
        str,
        typer.Option(
            help='"linear", or heads that are trained by steps: 1024-512-0.2, conv1280-flatten; several with ",".'
        ),
    ] = "linear",
    head_epochs: Annotated[
        int, typer.Option(min=0, help="Of heads that are trained by steps; 0: 10, or 30 of views.")
    ] = 0,
    head_lr: Annotated[float, typer.Option(min=0, help="Of these heads; 0: several, the best is kept.")] = 0.0,
    single_logit: Annotated[
        bool, typer.Option("--single-logit", help="Two classes share one logit, with binary cross-entropy.")
    ] = False,
    unfreeze: Annotated[str, typer.Option(help="Train from this part on (see headstart layers), or all.")] = "",
    epochs: Annotated[int, typer.Option(min=0, help="Of each rung; 0: what the effort takes.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of fine-tuning; 0: the default.")] = 0.0,
    views: Annotated[int, typer.Option(min=0, help="Augmented views of each image; 0: what the effort takes.")] = 0,
    fresh_views: Annotated[bool, typer.Option("--fresh-views", help="New views in every epoch.")] = False,
    value_range: RangeChoice = RangeOption.full,
    flip: Annotated[bool, typer.Option(help="Whether a mirrored picture shows the same thing.")] = True,
    balance_classes: Annotated[bool, typer.Option("--balance-classes", help="Weigh the classes alike.")] = False,
    update_batchnorm: Annotated[
        bool, typer.Option("--update-batchnorm", help="BatchNorm that is trained goes on learning its statistics.")
    ] = False,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Random weights, all of them trained: for comparison.")
    ] = False,
    gradual_unfreezing: Annotated[
        bool, typer.Option("--gradual-unfreezing", help="Each rung goes on from the one below.")
    ] = False,
    extend: Annotated[
        str,
        typer.Option(
            help="Keep the classes of this run or model (\"pretrained\": the backbone's own), add the data's."
        ),
    ] = "",
    rehearsal: Annotated[
        Path | None, typer.Option(help="With --extend: pictures of what is known already; labels are not needed.")
    ] = None,
    train_old_classes: Annotated[
        bool, typer.Option("--train-old-classes", help="With --extend: the classes that stay are trained as well.")
    ] = False,
    target_accuracy: Annotated[
        float, typer.Option(help="Of the answers; where the model is less sure on val, it says so.")
    ] = 0.95,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: DeviceChoice = Device.auto,
    watch: Annotated[bool, typer.Option("--watch", help="Show the run on a page while it goes on.")] = False,
    watch_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of that page, on this machine; 0: any that is free.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Train a classifier and write model, scores, predictions and report into a run folder."""
    with _importing():
        from headstart.files import user_path
        from headstart.pipeline.train import resume as resume_run
        from headstart.pipeline.train import train as train_run
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import choose_run_folder
        from headstart.training.recipe import PRETRAINED, Recipe

    if (data is None) == (resume is None):
        raise typer.BadParameter("Missing argument DATA, or an unfinished run to --resume; one of the two.")
    if resume is not None:
        _require_only_resume(context)
    watch = watch or watch_port > 0
    recipe = None
    if data is not None:
        out = choose_run_folder(out, data) if watch else out
        recipe = Recipe(
            effort=effort.value,
            backbone=backbone or None,
            weights=_absolute(weights),
            image_size=image_size or None,
            pool=pool.value,
            cut=cut or None,
            probe=probe.value,
            head=head,
            head_epochs=head_epochs or None,
            head_lr=head_lr or None,
            single_logit=single_logit,
            unfreeze=unfreeze or None,
            epochs=epochs or None,
            lr=lr or None,
            views=views or None,
            fresh_views=fresh_views,
            value_range=value_range.value,
            flip=flip,
            balance_classes=balance_classes,
            update_batchnorm=update_batchnorm,
            scratch=scratch,
            gradual_unfreezing=gradual_unfreezing,
            extend=PRETRAINED if extend == PRETRAINED else _absolute(Path(extend) if extend else None),
            rehearsal=_absolute(rehearsal),
            train_old_classes=train_old_classes,
            target_accuracy=target_accuracy,
            val=val,
            test=test,
            seed=seed,
        )
    resume = None if resume is None else user_path(resume)
    with _watched((resume or out) if watch else None, watch_port):
        if resume is not None:
            run = resume_run(resume, progress=TerminalProgress())
        else:
            assert data is not None
            source = _source(data, 1 if extend else 2, path_column, label_column, split_column, group_column)
            run = train_run(source, out=out, recipe=recipe, device=device.value, progress=TerminalProgress())
        if as_json:
            files = {"run": str(run.folder), "model": str(run.model_path), "report": str(run.report_path)}
            scores = {name: s.as_json() for name, s in run.results.items()}
            _print_json(files | {"scores": scores, "seconds": run.seconds})
        else:
            _print_results(list(run.results.values()))
            print(f"Report: {run.report_path}\nModel:  {run.model_path}", flush=True)


def _require_only_resume(context: typer.Context) -> None:
    """A run is resumed with its own options: others are errors."""
    allowed = {"resume", "as_json", "watch", "watch_port"}
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in allowed
        and (source := context.get_parameter_source(parameter.name)) is not None
        and not source.name.startswith("DEFAULT")
    ]
    if given:
        raise typer.BadParameter(
            f"{given[0]}: a run is resumed with the options that it began with; leave it out. Only --json, --watch and "
            "--watch-port go with --resume."
        )


@app.command()
def retrain(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    corrections: Annotated[
        Path | None,
        typer.Option(help="Folder of corrected images, one folder per class. Default: RUN-corrections."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new run's folder, new or empty. Default: RUN-2, RUN-3, ...")
    ] = None,
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Train a run again with the answers that were corrected on its page, and compare before and after.

    The new run has the options and the split of the old one. Corrected images of the run stay in train, val or test,
    with their new labels; other images are for training.
    """
    with _importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.retrain import retrain as retrain_run

    done = retrain_run(run, corrections, out=out, device=device.value, progress=TerminalProgress())
    if as_json:
        files = {"run": str(done.run.folder), "model": str(done.run.model_path), "report": str(done.run.report_path)}
        scores = {name: own.as_json() for name, own in done.run.results.items()}
        _print_json(files | {"scores": scores, "changes": [own.as_json() for own in done.changes]})
        return
    _print_results(list(done.run.results.values()))
    for sentence in done.sentences or ["No held-out image has an answer of both runs: nothing to compare."]:
        print(sentence)
    print(f"Report: {done.run.report_path}\nModel:  {done.run.model_path}", flush=True)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, under way, stopped or finished.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On this machine; 0: any that is free.")] = 0,
    beside: Annotated[bool, typer.Option("--beside", hidden=True)] = False,
) -> None:
    """Show a run on a page: plan, progress, curves, ladder, findings, mistakes. Stop it with Ctrl-C.

    It reads the run's folder alone: the training is neither slowed nor stopped by who looks at it.
    """
    from headstart.files import user_path
    from headstart.serve.watch.process import open_in_browser, watch_for_parent
    from headstart.serve.watch.process import watch as watch_run

    run = user_path(run)
    if beside:
        watch_for_parent(run, port=port)
        return

    def opened(where: str) -> None:
        _complain(f"{run} is shown at {where}. Stop it with Ctrl-C.")
        open_in_browser(where)

    watch_run(run, port=port, opened=opened)


@app.command()
def evaluate(
    run_or_model: RunOrModel,
    data: Annotated[Path | None, typer.Argument(help="Other data; the run's own val and test if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write every prediction to this .csv file.")] = None,
    ignore_unknown: IgnoreUnknown = False,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Score a saved model on its run's own images, or on other data."""
    with _importing():
        from headstart.evaluation.predictions import predictions_csv
        from headstart.files import check_suffix, write_csv_file
        from headstart.progress import TerminalProgress
        from headstart.verbs.evaluate import evaluate as evaluate_model

    if out is not None:
        check_suffix(out, [".csv"])
    source = _source(data, 2, path_column, label_column, split_column, group_column)
    evaluated = evaluate_model(
        run_or_model, source, ignore_unknown=ignore_unknown, device=device.value, progress=TerminalProgress()
    )
    if out is not None:
        write_csv_file(out, predictions_csv(evaluated))
    scores = [part.scores for part in evaluated]
    if as_json:
        _print_json({part.scores.name: part.scores.as_json() | _groups_document(part) for part in evaluated})
        return
    _print_results(scores)
    for part in evaluated:
        _print_table(*_class_table(part.scores))
        if part.by_group:
            _print_table(*_group_table(part))


@app.command()
def predict(
    run_or_model: RunOrModel,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the predictions to this .csv, .json or .parquet file.")
    ] = None,
    excel: Annotated[
        bool, typer.Option("--excel", help="With --out NAME.csv: a file that opens right in Excel, in any language.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Classes listed for each picture.")] = 1,
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Classify pictures. One that cannot be read has a row that says why."""
    with _importing():
        from headstart.evaluation.tables import TABLE_FORMATS, prediction_document, write_predictions
        from headstart.files import check_suffix
        from headstart.model import load
        from headstart.progress import TerminalProgress

    if out is not None:
        check_suffix(out, [".csv"] if excel else TABLE_FORMATS)
    elif excel:
        raise typer.BadParameter("--excel writes a file: name it with --out NAME.csv.")
    model = load(run_or_model)
    predictions = model.predict(paths, top=top, device=device.value, progress=TerminalProgress())
    if out is not None:
        write_predictions(out, predictions, excel=excel)
    uncalibrated = {} if model.calibration.images else {"uncalibrated": model.calibration_text}
    if uncalibrated:
        _complain(model.calibration_text)
    if as_json:
        _print_json([prediction_document(p) | uncalibrated for p in predictions])
    elif out is None:
        for p in predictions:
            print(f"{_shown(p.path)}\t{_answer(p)}")
    else:
        print(f"{out}: {len(predictions):,} pictures")
    unread = [p for p in predictions if p.label is None]
    if unread:
        first = f"{_shown(unread[0].path)}: {unread[0].error}"
        _complain(f"{len(unread):,} of {len(predictions):,} pictures cannot be read; the first, {first}.")
        if len(unread) == len(predictions):
            raise typer.Exit(1)


@app.command()
def extract(
    data: Data,
    out: Annotated[Path, typer.Option(help="The .npz or .parquet file to write.")],
    backbone: BackboneName = "",
    weights: WeightsFile = None,
    image_size: ImageSize = 0,
    pool: PoolChoice = Pool.auto,
    cut: Cut = "",
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Write the backbone's features of every picture, with path and label, for any other tool."""
    with _importing():
        from headstart.features.export import export_features
        from headstart.progress import TerminalProgress

    count, length = export_features(
        _source(data, 2, path_column, label_column, split_column, group_column),
        out,
        backbone=backbone,
        weights=weights,
        image_size=image_size or None,
        pool=pool.value,
        cut=cut,
        device=device.value,
        progress=TerminalProgress(),
    )
    if as_json:
        _print_json({"file": str(out), "images": count, "features": length})
    else:
        print(f"{out}: {count:,} images, {length:,} features each")


@app.command()
def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="DATA | MODEL_A MODEL_B DATA", help="See above.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder for it, new or empty; runs/NAME if left out. Of two models, a .csv file."),
    ] = None,
    only: Annotated[
        str, typer.Option(help='Some of probes, heads, depths, batchnorm, weights, with "," between.')
    ] = "probes,heads,depths,batchnorm,weights",
    seconds: Annotated[float, typer.Option(min=0, help="That each way to fine-tune gets, about.")] = 60.0,
    backbone: BackboneName = "",
    weights: WeightsFile = None,
    image_size: ImageSize = 0,
    balance_classes: Annotated[bool, typer.Option("--balance-classes", help="Weigh the classes alike.")] = False,
    flip: Annotated[bool, typer.Option(help="Whether a mirrored picture shows the same thing.")] = True,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    ignore_unknown: IgnoreUnknown = False,
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Train in several ways on the same data, or compare two models that are there on the same images.

    With DATA alone: one table and one picture of accuracy and seconds. With MODEL_A MODEL_B DATA: on how many images
    each is right where the other is not, and whether that is more than chance (McNemar's test); --out lists them. Each
    model is a run folder or a model file; of the options these take --ignore-unknown, --device and --json.
    """
    if len(paths) == 3:
        source = _source(paths[2], 2, path_column, label_column, split_column, group_column)
        _compare_models(
            paths[0], paths[1], source, out=out, ignore_unknown=ignore_unknown, device=device, as_json=as_json
        )
        return
    if len(paths) != 1:
        raise typer.BadParameter("expected DATA, or MODEL_A MODEL_B DATA.")
    data = paths[0]
    from dataclasses import asdict

    with _importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.compare import compare as compare_ways

    found = compare_ways(
        _source(data, 2, path_column, label_column, split_column, group_column),
        out=out,
        only=[name.strip() for name in only.split(",") if name.strip()],
        seconds=seconds,
        backbone=backbone or None,
        weights=_absolute(weights),
        image_size=image_size or None,
        balance_classes=balance_classes,
        flip=flip,
        val=val,
        test=test,
        seed=seed,
        device=device.value,
        progress=TerminalProgress(),
    )
    if as_json:
        _print_json({"folder": str(found.folder), "scored_on": found.name, "rows": [asdict(r) for r in found.rows]})
        return
    _print_table(
        ["way", "right", "accuracy", "95 % interval", "log loss", "seconds"],
        [
            [
                row.name,
                f"{row.correct:,} of {row.count:,}",
                f"{100 * row.accuracy:.1f} %",
                f"{100 * row.low:.1f}-{100 * row.high:.1f}",
                f"{row.log_loss:.3f}",
                f"{row.seconds:.0f}",
            ]
            for row in found.rows
        ],
    )
    files = ", ".join(str(found.folder / f"comparison.{ending}") for ending in ("md", "json", "png"))
    print(f"Scored on {found.name}. Written: {files}")


def _compare_models(
    first: Path,
    second: Path,
    data: Path | Dataset,
    *,
    out: Path | None,
    ignore_unknown: bool,
    device: Device,
    as_json: bool,
) -> None:
    with _importing():
        from headstart.files import check_suffix, write_csv_file
        from headstart.progress import TerminalProgress
        from headstart.verbs.compare_models import compare_models

    if out is not None:
        check_suffix(out, [".csv"])
    found = compare_models(
        first, second, data, ignore_unknown=ignore_unknown, device=device.value, progress=TerminalProgress()
    )
    if out is not None:
        write_csv_file(out, found.csv())
    if as_json:
        _print_json([result.as_json() for result in found.results])
        return
    for result in found.results:
        print(f"{result.sentence}.")
    if out is not None:
        print(f"{out}: the {len(found.differing):,} images on which they differ")


@app.command()
def layers(
    backbone: Annotated[str, typer.Argument(help="A timm architecture, for example resnet50.")],
    image_size: ImageSize = 0,
    classes: Annotated[int, typer.Option(min=0, help="Outputs of the classifier; 0: none.")] = 1000,
    unfreeze: Annotated[
        list[str] | None,
        typer.Option(help="A layer to train, may be given again; if left out, the classifier alone."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List a backbone's layer groups in execution order, and the boundaries where it can be cut.

    A boundary's activation is counted in half precision; its cost is the share of the forward pass's operations before
    it; the classifier's weights are not counted behind it.
    """
    from dataclasses import asdict

    with _importing():
        from headstart.backbone.layers import freeze, layer_groups
        from headstart.backbone.names import resolve_architecture
        from headstart.backbone.split import SplittableBackbone
        from headstart.backbone.weights import build_architecture, classifier_names, preprocessing_of

    backbone = resolve_architecture(backbone)
    module = build_architecture(backbone, image_size=image_size or None, classes=classes)
    freeze(module, trainable=unfreeze or (classifier_names(module) if classes else ()))
    expected = preprocessing_of(module, image_size or None)
    groups = layer_groups(module, input_shape=(3, expected.height, expected.width))
    headless = build_architecture(backbone, image_size=image_size or None)
    split = SplittableBackbone(headless, height=expected.height, width=expected.width)
    total, trained = sum(g.parameters for g in groups), sum(g.trainable for g in groups)
    statistics = sum(g.statistics for g in groups)
    if as_json:
        totals = {"parameters": total, "trainable": trained, "statistics": statistics}
        boundaries = {"boundaries": [asdict(b) for b in split.boundaries], "obstacle": split.obstacle}
        _print_json({"backbone": backbone, "groups": [asdict(g) for g in groups], **totals, **boundaries})
        return
    rows = [
        [
            g.name,
            g.kind,
            " x ".join(map(str, g.output_shape)) or "-",
            f"{g.parameters:,}",
            _state(g.parameters, g.trainable),
        ]
        for g in groups
    ]
    print(f"{backbone}, pictures of {expected.height} x {expected.width} pixels")
    _print_table(["layer group", "kind", "output", "weights", "trained"], rows)
    print(f"Weights: {total:,}, of them {trained:,} trainable and {total - trained:,} not.")
    print(f"BatchNorm statistics, which no gradient changes: {statistics:,}.\n")
    _print_table(
        ["boundary after", "activation", "bytes an image", "cost before", "weights behind"],
        [
            [
                b.name,
                " x ".join(map(str, b.shape)),
                f"{b.bytes_per_image:,}",
                f"{100 * b.cost_before:.0f} %",
                f"{b.parameters_after:,}",
            ]
            for b in split.boundaries
        ],
    )
    if split.obstacle:
        print(f"It can be cut at the head alone: {split.obstacle}.")


@app.command()
def check(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="A folder, new or empty, for findings.json and check.html.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write a table without what is serious or a warning, .csv.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 on a serious finding.")] = False,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Without the backbone: neither wrong labels nor outliers.")
    ] = False,
    backbone: BackboneName = "",
    weights: WeightsFile = None,
    image_size: ImageSize = 0,
    value_range: RangeChoice = RangeOption.full,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Look at the data: what cannot be read, stands there twice, is labelled wrongly, or is no such picture at all."""
    with _importing():
        from headstart.files import check_suffix
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import choose_run_folder
        from headstart.verbs.check import check as check_data
        from headstart.verbs.check import write_check, write_clean

    if write is not None:
        check_suffix(write, [".csv"])
    folder = None if out is None else choose_run_folder(out, data)
    look = check_data(
        _source(data, 1, path_column, label_column, split_column, group_column),
        files_only=files_only,
        device=device.value,
        progress=TerminalProgress(),
        backbone=backbone or None,
        weights=_absolute(weights),
        image_size=image_size or None,
        value_range=value_range.value,
        val=val,
        test=test,
        seed=seed,
    )
    written = [] if folder is None else write_check(look, folder)
    left_out = None if write is None else write_clean(look, write)
    if as_json:
        _print_json(_check_document(look))
    else:
        _print_check(look)
        for file in written:
            print(f"Written: {file}")
        if left_out is not None:
            print(f"Written: {write}, {len(look.dataset) - len(left_out):,} images; {len(left_out):,} left out.")
    if strict and any(finding.severity == "serious" for finding in look.findings):
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="The .html file; report.html in the run if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a finished run anew: one HTML file that needs nothing else."""
    with _importing():
        from headstart.files import check_suffix
        from headstart.verbs.report import report as report_run

    if out is not None:
        check_suffix(out, [".html"])
    file = report_run(run, out)
    if as_json:
        _print_json({"report": str(file), "bytes": file.stat().st_size})
    else:
        print(f"Report: {file}")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="Share the report as well, with its small pictures of the images.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Share a run's model, with its model card, on the Hugging Face hub. No image leaves the machine.

    hs.load("hf://OWNER/NAME") and every command that takes a model read it from there.
    """
    with _importing():
        from headstart.verbs.report import push as push_run

    url = push_run(run, repository, private=private, with_report=with_report)
    if as_json:
        _print_json({"repository": repository, "url": url, "model": f"hf://{repository}"})
    else:
        print(f"{url}\nModel: hf://{repository}")


def _limit(flag: str) -> Any:
    option, _ = limit_option(flag)
    return typer.Option(min=option.minimum, help=option.help)


@app.command()
def serve(
    run_or_model: RunOrModel,
    host: Annotated[str, typer.Option(help="Where it listens; 0.0.0.0 for other machines as well.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    key: Annotated[
        str, typer.Option(envvar="HEADSTART_KEY", help="That requests must bring as Authorization: Bearer KEY.")
    ] = "",
    max_body: Annotated[float, _limit("max-body")] = limit_option("max-body")[1],
    max_images: Annotated[int, _limit("max-images")] = int(limit_option("max-images")[1]),
    max_pixels: Annotated[float, _limit("max-pixels")] = limit_option("max-pixels")[1],
    queue: Annotated[int, _limit("queue")] = int(limit_option("queue")[1]),
    connections: Annotated[int, _limit("connections")] = int(limit_option("connections")[1]),
    timeout: Annotated[float, _limit("timeout")] = limit_option("timeout")[1],
    gather: Annotated[float, _limit("gather")] = limit_option("gather")[1],
    corrections: Annotated[
        Path | None,
        typer.Option(help="Where corrected pictures are kept; NAME-corrections beside the run or model if left out."),
    ] = None,
    device: DeviceChoice = Device.auto,
) -> None:
    """Answer over HTTP what the model says of pictures, and show it on a page. Stop it with Ctrl-C.

    POST /v1/predict takes pictures (multipart, field files); GET /v1/model, /healthz, /readyz, /metrics and
    /openapi.json tell the rest. Each request is a line of JSON on stderr.
    """
    with _importing():
        from headstart.progress import TerminalProgress
        from headstart.serve.server import serve as serve_model

    limits = limits_from_options(
        {
            "max-body": max_body,
            "max-images": max_images,
            "max-pixels": max_pixels,
            "queue": queue,
            "connections": connections,
            "timeout": timeout,
            "gather": gather,
        }
    )
    serve_model(
        run_or_model,
        host=host,
        port=port,
        key=key,
        limits=limits,
        corrections=corrections,
        device=device.value,
        progress=TerminalProgress(),
    )


@app.command()
def export(
    run_or_model: RunOrModel,
    to: Annotated[ToOption, typer.Option(help="ONNX, or PyTorch's ExportedProgram (.pt2).")] = ToOption.onnx,
    out: Annotated[Path | None, typer.Option(help="The file; beside the model if left out.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Images to compare on, a folder or a table; the run's own if left out: val, test or train."),
    ] = None,
    quantize: Annotated[
        QuantizeOption | None, typer.Option(help="Weights and activations of 8 bits, calibrated on the images.")
    ] = None,
    allow_loss: AllowLoss = False,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Write a model as one file that needs no Headstart: pixels of any size in, probabilities out.

    The file is opened in a fresh process and compared with the model on up to 500 images; if it differs it is not kept.
    """
    with _importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.export import export as export_model

    found = export_model(
        run_or_model,
        to.value,
        out=out,
        data=_source(data, 1, path_column, label_column, split_column, group_column),
        quantize=quantize.value if quantize else "",
        allow_loss=allow_loss,
        device=device.value,
        progress=TerminalProgress(),
    )
    if as_json:
        _print_json(found.as_json())
        return
    _print_formats(found)
    for language, text in found.snippets.items():
        print(f"\n{language}:\n\n{text}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="That headstart export wrote, .onnx or .pt2.")],
    data: Annotated[Path, typer.Argument(help="A folder, a table, or a run, whose val and model are taken.")],
    model: Annotated[
        Path | None, typer.Option(help="Compare with this run or model; with the labels alone if left out.")
    ] = None,
    allow_loss: AllowLoss = False,
    path_column: PathColumn = "",
    label_column: LabelColumn = "",
    split_column: SplitColumn = "",
    group_column: GroupColumn = "",
    device: DeviceChoice = Device.auto,
    as_json: Json = False,
) -> None:
    """Compare an exported file with its model once more. Exit status 1 where it is not as good as it must be."""
    with _importing():
        from headstart.progress import TerminalProgress
        from headstart.verbs.export import verify as verify_file

    found = verify_file(
        file,
        _source(data, 1, path_column, label_column, split_column, group_column),
        model=model,
        allow_loss=allow_loss,
        device=device.value,
        progress=TerminalProgress(),
    )
    if as_json:
        _print_json(found.as_json())
    else:
        _print_formats(found)
    if found.faults:
        _complain(f"Error: {file}: {'; '.join(found.faults)}.")
        raise typer.Exit(1)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is listed, in use or not.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind, for example pixels; may be given again.")
    ] = None,
    older: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Only what was not used for so many days.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read what is listed and compare it with its checksums; remove what is damaged. Status 1 if any was.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List what is kept on disk from earlier runs, the last used first; verify it, or remove it.

    Everything in it can be computed again. It lies at $HEADSTART_CACHE, or in the system's place for caches, and may
    grow to $HEADSTART_CACHE_LIMIT GB, or 50; beyond that, what was used longest ago goes. Runs verify what they read
    themselves: --verify is for a look at all of it, for example after a power cut or on a disk that fails.
    """
    import time

    from headstart.cache.budget import cache_limit
    from headstart.cache.entries import cache_entries, cache_root, clear_cache, size_text
    from headstart.cache.verify import verify_cache

    root, limit, held = cache_root(), cache_limit(), cache_entries()
    before = time.time() - (older or 0) * 86_400
    chosen = [e for e in held if (not kind or e.kind in kind) and (older is None or e.used <= before)]
    if verify and clear:
        raise typer.BadParameter("choose one of --verify and --clear")
    if verify:
        _print_verified(list(verify_cache(chosen)), as_json=as_json)
        return
    freed = clear_cache(chosen) if clear else 0
    total = sum(e.bytes for e in held) - freed
    if as_json:
        listed = {"removed" if clear else "entries": [_entry_document(e) for e in chosen]}
        _print_json({"cache": str(root), "limit": limit, "bytes": total, "freed": freed} | listed)
        return
    if not held:
        print(f"The cache at {_shown(str(root))} is empty.")
        return
    if clear:
        print(f"Removed {_entries(len(chosen))}, {size_text(freed)}.")
    elif chosen:
        _print_table(
            ["kind", "what", "rows", "size", "last used"],
            [[e.kind, e.words, f"{e.rows:,}" if e.rows else "-", size_text(e.bytes), _minute(e.used)] for e in chosen],
        )
    if not chosen:
        print(f"None is of that kind or age; there are {', '.join(sorted({e.kind for e in held}))}.")
    print(f"The cache at {_shown(str(root))} holds {size_text(total)} and may hold {size_text(limit)}.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where digits and run are written.")] = Path("headstart-demo"),
    device: DeviceChoice = Device.auto,
) -> None:
    """Write 1,797 handwritten digits as a folder of pictures, and train on it. Needs no network."""
    with _importing():
        from headstart.demo import write_digits
        from headstart.files import user_path
        from headstart.pipeline.train import train as train_run
        from headstart.progress import TerminalProgress
        from headstart.runs.folder import next_free

    out = user_path(out)
    count = write_digits(out / "digits")
    _complain(f"Wrote {count:,} pictures of handwritten digits to {out / 'digits'}.")
    run = train_run(out / "digits", out=next_free(out / "run"), device=device.value, progress=TerminalProgress())
    _print_results(list(run.results.values()))
    print(f"Report: {run.report_path}\nModel:  {run.model_path}")


def run() -> NoReturn:
    """The ``headstart`` command as a process: ``main``, then out at once.

    Taking the interpreter down object by object takes over a second where torch is loaded.
    """
    status: str | int | None = 0
    defer_compiler()
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    os._exit(status if isinstance(status, int) else int(bool(status)))


def main() -> None:
    """The ``headstart`` command within a process; raises SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    _quiet_libraries()
    try:
        app()
    except HeadstartError as error:
        _complain(f"Error: {error}")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != STOPPED:  # Typer turns Ctrl-C into this status
            raise
        _complain("Stopped.")
        sys.exit(STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


@contextmanager
def _watched(folder: Path | None, port: int) -> Iterator[None]:
    """The time in which a page shows a run; None for no page."""
    if folder is None:
        yield
        return
    from headstart.serve.watch.process import open_in_browser, watched_beside

    try:
        with watched_beside(folder, port=port) as address:
            where = address()
            _complain(f"Watch the run at {where}")
            open_in_browser(where)
            yield
    finally:
        if (folder / "recipe.json").is_file():
            _complain(f"To open that page again: headstart watch {_shown(str(folder))}")


@contextmanager
def _importing() -> Iterator[None]:
    """Imports without the garbage collector, which would look through all that is loaded again and again: 1 s of 4.

    The process belongs to the command, so what it frees is kept for its next activations from then on.
    """
    gc.disable()
    try:
        yield
        from headstart.engine.device import keep_freed_memory

        keep_freed_memory()
    finally:
        gc.enable()


@overload
def _source(data: Path, least: int, path: str, label: str, split: str, group: str) -> Path | Dataset: ...
@overload
def _source(data: Path | None, least: int, path: str, label: str, split: str, group: str) -> Path | Dataset | None: ...
def _source(data: Path | None, least: int, path: str, label: str, split: str, group: str) -> Path | Dataset | None:
    """What a verb gets as its data: the folder or table, opened already where columns of a table are named."""
    columns = {"path_column": path, "label_column": label, "split_column": split, "group_column": group}
    if not any(columns.values()):
        return data
    if data is None:
        first = next(name for name, column in columns.items() if column)
        raise typer.BadParameter(f"--{first.replace('_', '-')} belongs to a table: name the data as well.")
    from headstart.data.dataset import open_data

    return open_data(data, min_classes=least, **columns)


def _absolute(path: Path | None) -> str | None:
    """As a recipe keeps it: good from any folder; None for none."""
    from headstart.files import user_path

    return str(user_path(path).resolve()) if path else None


def _quiet_libraries() -> None:
    """Other libraries' remarks are not for the user of a command; what matters is raised."""
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(document: object) -> None:
    from headstart.files import json_text

    print(json_text(document, indent=1))


def _print_results(scores: list[AnyScores]) -> None:
    for s in scores:
        print(f"{s.sentence}; macro-F1 {s.macro_f1:.3f}")


def _class_table(scores: AnyScores) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    from headstart.evaluation.metrics import LabelScores, class_figures, share_words

    rows = [
        [c.label, *map(share_words, (c.precision, c.recall, c.f1)), f"{c.support:,}"] for c in class_figures(scores)
    ]
    header = [f"{scores.name}: class", "precision", "recall", "F1", "images"]
    if not isinstance(scores, LabelScores):
        return header, rows
    more = [[f"{100 * c.average_precision:.1f} %", f"{c.threshold:.2f}"] for c in scores.classes]
    header = [f"{scores.name}: label", *header[1:], "average precision", "threshold"]
    return header, [[*row, *own] for row, own in zip(rows, more, strict=True)]


def _groups_document(part: Evaluated) -> dict[str, object]:
    from dataclasses import asdict

    return {} if part.groups is None else {"groups": [asdict(own) for own in part.by_group]}


def _group_table(part: Evaluated) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    rows = [
        [
            own.group or "in none",
            f"{own.correct:,} of {own.count:,}",
            f"{100 * own.correct / own.count:.1f} %",
            f"{100 * own.low:.1f}-{100 * own.high:.1f}",
        ]
        for own in part.by_group
    ]
    return [f"{part.scores.name}: group", "right", "accuracy", "95 % interval"], rows


def _print_formats(found: Exported) -> None:
    """One row for each format, and what decoding by other programs changes."""
    from headstart.cache.entries import size_text

    rows = [
        [
            one.name,
            f"{one.correct:,} of {one.images:,}",
            f"{100 * one.accuracy:.1f} %",
            f"{100 * one.low:.1f}-{100 * one.high:.1f}",
            "-" if one.clear is None else f"{one.same:,} of {one.clear:,}",
            "-" if one.largest is None else f"{one.largest:.1e}",
            size_text(one.bytes) if one.bytes else "-",
            f"{one.rate:.0f}",
        ]
        for one in found.formats
    ]
    _print_table(
        ["format", "right", "accuracy", "95 % interval", "same answer", "largest difference", "size", "images/s"], rows
    )
    print(f"Compared on {found.formats[-1].images:,} images, {found.images}.")
    if found.quantised is not None:
        print(f"Quantised: {found.quantised}.")
    if (whole := found.formats[-1].whole) is not None:
        print(
            f"{whole.images:,} of them are JPEGs that are reduced while they are decoded. Decoded whole, as other "
            f"programs do, {whole.same:,} get the same answer, {whole.correct:,} are right instead of "
            f"{whole.correct_reduced:,}, and a probability differs by up to {whole.largest:.2f}."
        )
    print(f"File: {found.file}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns aligned by width: words to the left, numbers to the right."""
    table = [[_shown(cell) for cell in row] for row in [header, *rows]]
    columns = list(zip(*table, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [
        place > 0 and any(cell[:1].isdigit() for cell in column[1:]) and widths[place] <= WIDEST_NUMBER
        for place, column in enumerate(columns)
    ]
    for row in table:
        cells = zip(row, widths, numbers, strict=True)
        print("  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip())


def _answer(prediction: Prediction) -> str:
    """Labels with their probabilities, or why there are none."""
    if prediction.label is None:
        return prediction.error or ""

    def words(pairs: Iterable[tuple[str, float]]) -> str:
        return "  ".join(f"{label} {100 * chance:.1f} %" for label, chance in pairs)

    if prediction.answer not in (prediction.label, ""):
        return f"{prediction.answer} (nearest: {words(prediction.top)})"
    if prediction.labels is None:
        return words(prediction.top)
    return words(prediction.labels) or f"none of the labels (nearest: {words(prediction.top)})"


def _print_verified(verified: list[Verified], *, as_json: bool) -> None:
    """Says what was found; status 1 where something was damaged."""
    bad = [one for one in verified if not one.sound]
    if as_json:
        told = [
            _entry_document(one.entry)
            | {"rows": one.rows, "damaged": one.damaged, "fault": one.fault, "older version": one.old}
            for one in verified
        ]
        _print_json({"verified": told, "sound": not bad})
    else:
        for one in bad:
            what = one.fault or f"{one.damaged:,} of {one.rows:,} rows were damaged; removed"
            print(f"{_shown(str(one.entry.path))} ({one.entry.kind}, {_shown(one.entry.words)}): {what}.")
        count = sum(one.rows for one in verified)
        print(f"Verified {_entries(len(verified))}, {count:,} rows: {_entries(len(bad)) if bad else 'none'} damaged.")
        if old := sum(one.old for one in verified):
            print(f"{_entries(old)} of an older version, which nothing reads any more: headstart cache --clear.")
        if bad:
            print("What was removed is computed again when a run needs it.")
    if bad:
        raise typer.Exit(1)


def _entry_document(entry: CacheEntry) -> dict[str, object]:
    from dataclasses import asdict
    from datetime import UTC, datetime

    used = datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds")
    document = asdict(entry) | {"what": entry.words, "used": used, "path": str(entry.path)}
    return {name: value for name, value in document.items() if name != "row_bytes"}


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _minute(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _state(parameters: int, trainable: int) -> str:
    if not parameters:
        return "-"
    return "yes" if trainable == parameters else "no" if not trainable else f"{trainable:,} of them"


def _shown(text: str) -> str:
    """A file name that is no Unicode, or holds control characters, must not break the line."""
    from headstart.files import unicode_text

    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in unicode_text(text))


def _check_document(look: Inspection) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "data": str(look.dataset.root),
        "images": len(look.dataset),
        "usable": int(look.scanned.usable.sum()),
        "classes": list(look.dataset.classes),
        "split": "given" if look.split.given else "drawn",
        "split_origin": look.split.origin,
        "counts": look.counts(),
        "findings": [asdict(finding) for finding in look.findings],
    }


def _print_check(look: Inspection) -> None:
    counts = look.counts()
    usable = int(look.scanned.usable.sum())
    print(f"{look.dataset.root}: {usable:,} of {len(look.dataset):,} images usable, split {look.split.origin}")
    _print_table(
        ["class", *counts],
        [[label, *(f"{part[label]:,}" for part in counts.values())] for label in look.dataset.classes],
    )
    if not look.findings:
        print("\nNothing was found wrong.")
        return
    print()
    _print_table(
        ["severity", "finding", "cases", "what"],
        [[f.severity, f.kind, f"{len(f.items):,}" if f.items else "-", f.message] for f in look.findings],
    )
    for finding in look.findings:
        if finding.items:
            print(f"\n{finding.kind}:")
        for item in finding.items[:SHOWN_ITEMS]:
            print(f"  {_shown(item)}")
        if len(finding.items) > SHOWN_ITEMS:
            print(f"  and {len(finding.items) - SHOWN_ITEMS:,} more (--json lists all)")
