"""Images per second of every engine, in separate processes that alternate, and the difference from plain PyTorch.

    python benchmarks/engines.py [--data FOLDER] [--backbone NAME] [--images 3000] [--rounds 3] [--engines NAME ...]

Engines: PyTorch as it comes, in its default layout and channels last; ONNX Runtime alone; the folded network in
float32 and in mixed precision; OpenVINO, if it is named, in float32 and in bfloat16; and what Headstart chooses to
learn from, from a cold cache, with all the measuring that takes. Only Headstart's own engines keep freed memory
(``keep_freed_memory``). tf_efficientnet_lite0 has its real weights, any other backbone random ones. ImageFiles are
photographs from a folder, over again where there are too few, or noise.

Preparation is all that an engine does before the first batch once network and libraries are loaded: lowering, tracing,
folding, measuring, comparing. The last two columns set preparation and 3,000 images (extrapolated where fewer were run)
against the same of PyTorch channels last and of ONNX Runtime. Prints a row for each engine and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from headstart.backbone.pixel_net import FeatureNet, PixelNet
from headstart.backbone.weights import DEFAULT_BACKBONE, load_backbone, random_backbone
from headstart.concurrency import map_images
from headstart.data.decode import decode
from headstart.data.preprocessing import Preprocessing, resize_and_crop
from headstart.engine.candidates import build_engine, calibrate_mixed
from headstart.engine.device import keep_freed_memory
from headstart.engine.interface import processor_model
from headstart.engine.measure import measure_engines
from headstart.engine.onnx_lowering import onnx_bytes
from headstart.engine.plan import EnginePlan
from headstart.engine.select import SAMPLE_SIZE, choose_engine
from headstart.engine.torch_engine import TorchEngine
from headstart.errors import UnreadableImage
from headstart.exports.readers.openvino_reader import import_openvino

FULL = 3000
COMPARED = 128
EAGER = "torch channels last"
ONNX = "onnxruntime"
PER_IMAGE = "onnxruntime per image"
OPENVINO = {"openvino": "f32", "openvino bfloat16": "bf16"}
CHOSEN = "chosen"
CPU = torch.device("cpu")

Run = Callable[[np.ndarray], np.ndarray]


def feature_net(name: str) -> FeatureNet:
    return FeatureNet(load_backbone() if name == DEFAULT_BACKBONE else random_backbone(name))


def eager(net: PixelNet, *, channels_last: bool) -> Run:
    """What a user of PyTorch writes."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net.to(memory_format=layout)

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = net.normalised(torch.from_numpy(pixels)).contiguous(memory_format=layout)
            out: np.ndarray = net.finish(net.body(x)).numpy()
        return out

    return run


def prepare(name: str, net: PixelNet, sample: np.ndarray, cache: Path) -> tuple[Run, int, dict[str, Any]]:
    """(the engine, its batch size, what there is to say of it)."""
    if name.startswith("torch"):
        return eager(net, channels_last=name == EAGER), 16, {}
    if name == ONNX:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        alone = onnxruntime.InferenceSession(onnx_bytes(net), options, providers=["CPUExecutionProvider"])
        return lambda images: alone.run(None, {"pixels": images})[0], 32, {}
    if name in OPENVINO:
        return openvino_streams(net, OPENVINO[name]), 32, {}
    keep_freed_memory()
    plan = EnginePlan()
    if name == CHOSEN:
        plan = measure_engines(net, sample, count=FULL, device="cpu", cache=cache)
        chosen = choose_engine(net, count=FULL, sample=sample, plan=plan, exact=False, device="cpu")
        rates = {kind: round(rate) for kind, rate in plan.rates.items()}
        return chosen, chosen.batch_size, {"engine": chosen.name, "measured": rates, "float32": plan.exact}
    if name == "mixed":
        expected = TorchEngine(net, CPU)(sample)
        plan = calibrate_mixed(plan, net, sample, expected, CPU)
    engine = build_engine(ONNX if name == PER_IMAGE else name, plan, net, CPU)
    return engine, engine.batch_size, {"low_precision_from": plan.low_precision_from} if name == "mixed" else {}


def openvino_streams(net: PixelNet, precision: str) -> Run:
    """OpenVINO with one image per thread, which was faster than a batch that all threads share."""
    openvino = import_openvino()
    core, threads = openvino.Core(), torch.get_num_threads()
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
    }
    model = core.read_model(onnx_bytes(net))
    shape = net.backbone.preprocessing.height, net.backbone.preprocessing.width, 3
    model.reshape([1, *shape])
    queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", options), threads)
    parts: dict[int, np.ndarray] = {}
    queue.set_callback(lambda request, place: parts.__setitem__(place, np.array(request.get_output_tensor().data)))

    def run(pixels: np.ndarray) -> np.ndarray:
        for place in range(len(pixels)):
            queue.start_async(pixels[place : place + 1], place)
        queue.wait_all()
        return np.concatenate([parts[place] for place in range(len(pixels))])

    return run


def work(name: str, backbone: str, pixels: Path, cache: Path, orders: Connection) -> None:
    """Process of one engine: prepares, runs the requested batches and reports the time."""
    images = np.load(pixels, mmap_mode="r")
    net = feature_net(backbone)
    started = time.perf_counter()
    run, batch, notes = prepare(name, net, np.array(images[:SAMPLE_SIZE]), cache)
    orders.send({"prepared_s": time.perf_counter() - started} | notes)
    while (order := orders.recv()) is not None:
        first, last = order
        started = time.perf_counter()
        parts = [run(np.array(images[i : min(i + batch, last)])) for i in range(first, last, batch)]
        seconds = time.perf_counter() - started
        orders.send((seconds, np.concatenate(parts)))


def write_pixels(file: Path, count: int, folder: Path | None, preprocessing: Preprocessing) -> int:
    """Writes (count, H, W, 3) uint8 and returns how many of them differ."""
    shape = (preprocessing.height, preprocessing.width, 3)
    out = np.lib.format.open_memmap(file, "w+", np.uint8, (count, *shape))
    if folder is None:
        generator = np.random.default_rng(0)
        for i in range(count):
            out[i] = generator.integers(0, 256, shape, dtype=np.uint8)
        return count
    found = 0
    for image in map_images(lambda path: photograph(path, preprocessing), photographs(folder)):
        if image is not None and found < count:
            out[found] = image
            found += 1
    if not found:
        raise SystemExit(f"no photographs in {folder}")
    for i in range(found, count):
        out[i] = out[i % found]
    out.flush()
    return found


def photographs(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))][: 2 * FULL]


def photograph(path: Path, preprocessing: Preprocessing) -> np.ndarray | None:
    try:
        return resize_and_crop(decode(path, min_side=preprocessing.decode_at_least).image, preprocessing)
    except UnreadableImage:
        return None


def measure(names: list[str], backbone: str, pixels: Path, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Prepares one engine after the other, then lets them run in turns, a share of the images in each round."""
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, Any]] = {}
    lines: dict[str, Connection] = {}
    outputs: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as caches:
        for name in names:
            lines[name], theirs = context.Pipe()
            arguments = (name, backbone, pixels, Path(caches) / name, theirs)
            context.Process(target=work, args=arguments, daemon=True).start()
            theirs.close()
            rows[name] = lines[name].recv() | {"seconds": []}
            print(f"{name}: prepared in {rows[name]['prepared_s']:.1f} s", file=sys.stderr, flush=True)
        for number, share in enumerate(np.array_split(np.arange(count), rounds)):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                lines[name].send((int(share[0]), int(share[-1]) + 1))
                seconds, features = lines[name].recv()
                rows[name]["seconds"].append((seconds, len(share)))
                outputs.setdefault(name, features[:COMPARED])
                print(f"round {number + 1}: {name}: {len(share) / seconds:.1f} images/s", file=sys.stderr, flush=True)
        for line in lines.values():
            line.send(None)
    for name, row in rows.items():
        row["error"] = difference(outputs[name], outputs[names[0]])
    return rows


def difference(given: np.ndarray, expected: np.ndarray) -> float:
    """Root-mean-square difference over the root mean square."""
    return float(np.linalg.norm(given.astype(np.float64) - expected) / np.linalg.norm(expected))


def summed(rows: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows.values():
        shares = row.pop("seconds")
        row["run_s"] = sum(seconds for seconds, _ in shares)
        row["rate"] = sum(size for _, size in shares) / row["run_s"]
        row["rates"] = [round(size / seconds, 1) for seconds, size in shares]
        row["total_s"] = row["prepared_s"] + FULL / row["rate"]
    for name, row in rows.items():
        for key, other in (("eager", EAGER), ("onnx", ONNX)):
            if other in rows:
                row[f"run_{key}"] = row["rate"] / rows[other]["rate"]
                row[f"total_{key}"] = rows[other]["total_s"] / row["total_s"]
        yield {"engine": name} | {"runs": row.pop("engine", name)} | row


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    columns = [
        "engine",
        "prepare s",
        "run s",
        "images/s",
        "(rounds)",
        "error",
        "x eager",
        "x ORT",
        "all x eager",
        "all x ORT",
    ]
    cells = [columns]
    for row in rows:
        ratios = [row.get(key) for key in ("run_eager", "run_onnx", "total_eager", "total_onnx")]
        cells.append(
            [
                row["engine"],
                f"{row['prepared_s']:.1f}",
                f"{row['run_s']:.1f}",
                f"{row['rate']:.1f}",
                f"{min(row['rates']):.0f}-{max(row['rates']):.0f}",
                f"{row['error']:.1e}",
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        yield "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])


def main() -> None:
    known = ["torch", EAGER, ONNX, PER_IMAGE, "folded", "mixed", CHOSEN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=FULL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=[*known, *OPENVINO], default=known)
    options = parser.parse_args()
    names = ["torch", *(name for name in [*known[1:], *OPENVINO] if name in options.engines)]
    preprocessing = feature_net(options.backbone).backbone.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npy"
        differing = write_pixels(pixels, options.images, options.data, preprocessing)
        rows = list(summed(measure(names, options.backbone, pixels, options.images, options.rounds)))
    for line in table(rows):
        print(line)
    about = {
        "benchmark": "engines",
        "backbone": options.backbone,
        "size": [preprocessing.height, preprocessing.width],
        "images": options.images,
        "photographs": differing if options.data else 0,
        "processor": processor_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "median_rate": {row["engine"]: statistics.median(row["rates"]) for row in rows},
    }
    print(json.dumps(about | {"rows": [{k: rounded(v) for k, v in row.items()} for row in rows]}))


def rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
