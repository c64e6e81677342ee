"""Code snippets for files with a fixed input size: Python for LiteRT and ExecuTorch, Kotlin for Android, Swift for iOS.

Each resizes and crops as Headstart does, with the numbers of the model filled in. Kotlin has no filter like Pillow's,
so the snippet contains it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headstart.exports.metadata import ExportMetadata
from headstart.exports.snippets import IMAGE, answer_lines, image_code

_LITERT = """\
import json, numpy, zipfile  # pip install ai-edge-litert numpy pillow
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps

metadata = json.loads(zipfile.ZipFile({file}).read("headstart.json"))
run = Interpreter({file}).get_signature_runner()
"""

_EXECUTORCH = """\
import json, numpy, torch, zipfile  # pip install executorch numpy pillow
from executorch.runtime import Runtime
from PIL import Image, ImageOps

metadata = json.loads(zipfile.ZipFile({file}).read("headstart.json"))
program = Runtime.get().load_program({file})
run = program.load_method("forward")
"""

_FIT = """\
image = image.convert("RGB")
width, height = image.size
{size}
image = image.resize((size[0], height), Image.Resampling.{filter})  # columns first
image = image.resize(size, Image.Resampling.{filter})
left = {left}
top = {top}
canvas = Image.new("RGB", ({width}, {height}), {fill})
canvas.paste(image, (-left, -top))
pixels = numpy.asarray(canvas)[None]
"""

_KOTLIN = """\
// build.gradle: implementation("com.google.ai.edge.litert:litert:1.4.0")
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipFile
import kotlin.math.*
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

class Classifier(file: File) {{ // {name}, copied from the assets to a file
    private val metadata = ZipFile(file).use {{ zip ->
        JSONObject(zip.getInputStream(zip.getEntry("headstart.json")).reader().readText())
    }}
    private val interpreter = Interpreter(file)

    /** The answer for an upright, opaque bitmap in ARGB_8888, and its probability.{deep_note} */
    fun predict(bitmap: Bitmap): Pair<String, Float> {{
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val pixels = ByteBuffer.allocateDirect({height} * {width} * 3).order(ByteOrder.nativeOrder())
        fit(argb, bitmap.width, bitmap.height).forEach {{ pixels.put(it.toByte()) }}
        pixels.rewind()
        val probabilities = arrayOf(FloatArray({classes}))
        {outputs}
        interpreter.runSignature(mapOf<String, Any>("pixels" to pixels), results)
        {answer}
    }}
}}

/** Headstart's resize and crop: {width} x {height} pixels of red, green and blue. */
fun fit(argb: IntArray, width: Int, height: Int): IntArray {{
    val rgb = IntArray(argb.size * 3) {{ argb[it / 3] shr (16 - 8 * (it % 3)) and 255 }}
    {size}
    val columns = resize(rgb, height, width, newWidth) // columns first, as Headstart does
    val whole = turn(resize(turn(columns, height, newWidth), newWidth, height, newHeight), newWidth, newHeight)
    val left = {left}
    val top = {top}
    val fill = intArrayOf({fill})
    return IntArray({width} * {height} * 3) {{ i ->
        val x = i / 3 % {width} + left
        val y = i / 3 / {width} + top
        val inside = x >= 0 && x < newWidth && y >= 0 && y < newHeight
        if (inside) whole[(y * newWidth + x) * 3 + i % 3] else fill[i % 3]
    }}
}}

/** Pillow's {filter} filter along rows of `length` pixels, with its fixed-point weights. */
fun resize(source: IntArray, rows: Int, length: Int, size: Int): IntArray {{
    if (length == size) return source
    val scale = length.toDouble() / size
    val wide = max(scale, 1.0)
    val out = IntArray(rows * size * 3)
    for (x in 0 until size) {{
        val center = (x + 0.5) * scale
        val first = max(0, (center - {reach} * wide + 0.5).toInt())
        val end = min(length, (center + {reach} * wide + 0.5).toInt())
        val weights = DoubleArray(end - first) {{ weight((it + first - center + 0.5) / wide) }}
        val sum = weights.sum()
        val fixed = IntArray(end - first) {{
            val w = weights[it] / sum * (1 shl 22)
            (if (w < 0) w - 0.5 else w + 0.5).toInt()
        }}
        for (row in 0 until rows) for (channel in 0..2) {{
            var total = 1 shl 21
            for (i in fixed.indices) total += fixed[i] * source[(row * length + first + i) * 3 + channel]
            out[(row * size + x) * 3 + channel] = min(255, max(0, total shr 22))
        }}
    }}
    return out
}}

fun turn(source: IntArray, rows: Int, length: Int) = IntArray(source.size) {{
    source[((it / 3 % rows) * length + it / 3 / rows) * 3 + it % 3]
}}

{weight}
{deep}"""

_KOTLIN_DEEP_NOTE = """
     *  Images of more than 8 bits: make the bitmap with `scaled`. Android's decoders keep the upper 8 bits only. */"""

_KOTLIN_DEEP = """
/** A value of an image of more than 8 bits, 0 to `white` (65535 for 16 bits), as 0 to 255 in the range of training. */
fun scaled(value: Int, white: Int): Int {{
    val share = (value.toDouble() / white - {low}) / ({high} - {low})
    return round(255 * share.coerceIn(0.0, 1.0)).toInt()
}}
"""

_KOTLIN_WEIGHTS = {
    "box": "fun weight(x: Double) = if (x > -0.5 && x <= 0.5) 1.0 else 0.0",
    "bilinear": "fun weight(x: Double) = max(0.0, 1 - abs(x))",
    "bicubic": """\
fun weight(x: Double): Double {
    val d = abs(x)
    return if (d < 1) (1.5 * d - 2.5) * d * d + 1 else if (d < 2) ((2.5 - 0.5 * d) * d - 4) * d + 2 else 0.0
}""",
    "lanczos": """\
fun sinc(x: Double) = if (x == 0.0) 1.0 else sin(PI * x) / (PI * x)

fun weight(x: Double) = if (x >= -3 && x < 3) sinc(x) * sinc(x / 3) else 0.0""",
    "hamming": """\
fun weight(x: Double): Double {
    val d = abs(x) * PI
    return if (d == 0.0) 1.0 else if (d >= PI) 0.0 else sin(d) / d * (0.54 + 0.46 * cos(d))
}""",
    "nearest": "fun weight(x: Double) = if (x > -0.5 && x <= 0.5) 1.0 else 0.0 // nearest: use a box filter",
}
"""Interpolation -> the function of the snippet."""

_REACH = {"nearest": 0.5, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}

_SWIFT = """\
import CoreML // {name} in the project: Xcode compiles it
import Foundation

// pixels: an upright RGB CVPixelBuffer of {width} x {height} pixels. {before}
func predict(_ pixels: CVPixelBuffer) throws -> (String, Double) {{
    let url = Bundle.main.url(forResource: "{stem}", withExtension: "mlmodelc")!
    let model = try MLModel(contentsOf: url)
    let creator = model.modelDescription.metadata[.creatorDefinedKey] as! [String: String]
    let text = creator["headstart"]!.data(using: .utf8)!
    let metadata = try JSONSerialization.jsonObject(with: text) as! [String: Any]
    let input = try MLDictionaryFeatureProvider(dictionary: ["pixels": MLFeatureValue(pixelBuffer: pixels)])
    let outputs = try model.prediction(from: input)
    let scores = outputs.featureValue(for: "probabilities")!.multiArrayValue!
    {answer}
}}
{deep}"""

_SWIFT_OUTLIER = """\
let outlier = outputs.featureValue(for: "outlier")!.multiArrayValue![0].doubleValue
    if outlier > (metadata["none_above"] as! Double) {{ return (metadata["none"] as! String, outlier) }}"""

_SWIFT_CLASS = """\
let best = (0..<scores.count).max { scores[$0].doubleValue < scores[$1].doubleValue }!
    return ((metadata["classes"] as! [String])[best], scores[best].doubleValue)"""

_SWIFT_LABELS = """\
let limits = metadata["thresholds"] as! [Double]
    let labels = (0..<scores.count).filter { scores[$0].doubleValue >= limits[$0] }
    let names = labels.map { (metadata["classes"] as! [String])[$0] }.joined(separator: ", ")
    return (names, labels.map { scores[$0].doubleValue }.min() ?? 0)"""

_SWIFT_DEEP = """
// Images of more than 8 bits: a value of 0 to `white` (65535 for 16 bits) as 0 to 255 in the range of training. Make
// the pixel buffer with it: Apple's decoders keep the upper 8 bits only.
func scaled(_ value: Int, white: Int) -> UInt8 {{
    let share = (Double(value) / Double(white) - {low}) / ({high} - {low})
    return UInt8((255 * min(1, max(0, share))).rounded(.toNearestOrEven))
}}
"""


def litert_snippet(file: Path, metadata: ExportMetadata, image: str = IMAGE) -> str:
    """Python code that prints the answer for one image with the LiteRT runtime; decodes and resizes as Headstart does.

    Args:
        file: the .tflite file.
        metadata: of the file.
        image: path of the image to predict.
    """
    names = ["probabilities"] if metadata.none_above is None else ["probabilities", "outlier"]
    run = ["outputs = run(pixels=pixels)", *(f'{name} = outputs["{name}"]' for name in names)]
    return _python(_LITERT, run, file, metadata, image)


def executorch_snippet(file: Path, metadata: ExportMetadata, image: str = IMAGE) -> str:
    """The same for an ExecuTorch file."""
    names = "probabilities" if metadata.none_above is None else "probabilities, outlier"
    run = [f"[{names}] = [out.numpy() for out in run.execute([torch.from_numpy(pixels.copy())])]"]
    return _python(_EXECUTORCH, run, file, metadata, image)


def _python(head: str, run: list[str], file: Path, metadata: ExportMetadata, image: str) -> str:
    fit = _FIT.format(**_numbers(metadata), size=_python_size(metadata.preprocessing))
    lines = [*run, *answer_lines(metadata)]
    return head.format(file=json.dumps(str(file))) + image_code(metadata, json.dumps(image)) + fit + "\n".join(lines)


def kotlin_snippet(file: Path, metadata: ExportMetadata) -> str:
    """Kotlin code for Android that classifies a bitmap; resizes as Headstart does.

    Args:
        file: the .tflite file.
        metadata: of the file.
    """
    outputs = 'val results = mutableMapOf<String, Any>("probabilities" to probabilities)'
    lines = []
    if metadata.none_above is not None:
        outputs = "val outlier = FloatArray(1)\n        " + outputs[:-1] + ', "outlier" to outlier)'
        lines = [
            'if (outlier[0] > metadata.getDouble("none_above")) return Pair(metadata.getString("none"), outlier[0])'
        ]
    if metadata.thresholds is None:
        lines += [
            "val best = probabilities[0].indices.sortedByDescending { probabilities[0][it] }.first()",
            'return Pair(metadata.getJSONArray("classes").getString(best), probabilities[0][best])',
        ]
    else:
        lines += [
            'val limits = metadata.getJSONArray("thresholds")',
            "val labels = probabilities[0].indices.filter { probabilities[0][it] >= limits.getDouble(it) }",
            'val names = labels.joinToString { metadata.getJSONArray("classes").getString(it) }',
            "return Pair(names, labels.map { probabilities[0][it] }.sorted().firstOrNull() ?: 0f)",
        ]
    target = metadata.preprocessing
    return _KOTLIN.format(
        **_numbers(metadata, kotlin=True),
        size=_kotlin_size(target),
        name=file.name,
        classes=len(metadata.classes),
        outputs=outputs,
        answer="\n        ".join(lines),
        deep=_deep(_KOTLIN_DEEP, metadata),
        deep_note=_deep(_KOTLIN_DEEP_NOTE, metadata).removesuffix(" */"),
        reach=_REACH[target["interpolation"]],
        weight=_KOTLIN_WEIGHTS[target["interpolation"]],
    )


def swift_snippet(file: Path, metadata: ExportMetadata) -> str:
    """Swift code that classifies a pixel buffer of the input's size. Not compiled by Headstart's tests.

    Args:
        file: the .mlpackage folder.
        metadata: of the file.
    """
    target = metadata.preprocessing
    lines = [] if metadata.none_above is None else [_SWIFT_OUTLIER.format()]
    lines.append(_SWIFT_CLASS if metadata.thresholds is None else _SWIFT_LABELS)
    return _SWIFT.format(
        name=file.name,
        stem=file.stem,
        width=target["width"],
        height=target["height"],
        before=metadata.before_graph,
        answer="\n    ".join(lines),
        deep=_deep(_SWIFT_DEEP, metadata),
    )


def _deep(text: str, metadata: ExportMetadata) -> str:
    """Text about images of more than 8 bits; "" if the model was trained on their full scale."""
    if metadata.value_range is None:
        return ""
    low, high = metadata.value_range
    return text.format(low=low, high=high)


def _numbers(metadata: ExportMetadata, *, kotlin: bool = False) -> dict[str, Any]:
    """Values of the placeholders that both languages share."""
    target = metadata.preprocessing
    fill = tuple(min(255, round(255 * m)) for m in target["mean"])
    sides = ("newWidth", "newHeight") if kotlin else ("size[0]", "size[1]")
    form = _KOTLIN_OFFSET if kotlin else _PYTHON_OFFSET
    left, top = (form.format(side=side, count=target[name]) for side, name in zip(sides, _SIDES, strict=True))
    return {
        "left": left,
        "top": top,
        "width": target["width"],
        "height": target["height"],
        "fill": ", ".join(map(str, fill)) if kotlin else fill,
        "filter": target["interpolation"] if kotlin else target["interpolation"].upper(),
    }


_SIDES = ("width", "height")
_PYTHON_OFFSET = "-(({count} - {side}) // 2) if {side} < {count} else round(({side} - {count}) / 2)"
_KOTLIN_OFFSET = "if ({side} < {count}) -(({count} - {side}) / 2) else round(({side} - {count}) / 2.0).toInt()"


def _resize_to(target: dict[str, Any]) -> tuple[int, int]:
    return int(target["width"] / target["crop_pct"]), int(target["height"] / target["crop_pct"])


def _python_size(target: dict[str, Any]) -> str:
    """The line that computes ``size``, (width, height) of the resized image."""
    w, h = _resize_to(target)
    if target["crop_mode"] == "squash":
        return f"size = ({w}, {h})"
    if target["crop_mode"] == "border":
        least = "max(1, round(width / ratio)), max(1, round(height / ratio))"
        return f"ratio = max(height / {h}, width / {w})\nsize = {least}"
    if w == h:
        return f"size = int({w} * width / min(width, height)), int({h} * height / min(width, height))"
    least = f"max({target['width']}, round(width / ratio)), max({target['height']}, round(height / ratio))"
    return f"ratio = min(height / {h}, width / {w})\nsize = {least}"


def _kotlin_size(target: dict[str, Any]) -> str:
    w, h = _resize_to(target)
    if target["crop_mode"] == "squash":
        lines = [f"val newWidth = {w}", f"val newHeight = {h}"]
    elif target["crop_mode"] == "center" and w == h:
        short = "min(width, height)"
        lines = [f"val newWidth = {w} * width / {short}", f"val newHeight = {h} * height / {short}"]
    else:
        border = target["crop_mode"] == "border"
        least_w, least_h = (1, 1) if border else (target["width"], target["height"])
        lines = [
            f"val ratio = {'max' if border else 'min'}(height / {h}.0, width / {w}.0)",
            f"val newWidth = max({least_w}, round(width / ratio).toInt())",
            f"val newHeight = max({least_h}, round(height / ratio).toInt())",
        ]
    return "\n    ".join(lines)
