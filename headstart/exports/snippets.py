"""Code snippets that use an exported file, in Python, JavaScript and C++, with the name of the file filled in.

Lines start at the left margin and blocks end with an empty line, so that an interactive interpreter accepts them too.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from headstart.exports.metadata import KEY, OUTPUTS, ExportMetadata

IMAGE = "image.jpg"

_IMAGE = """\
image = Image.open({image})
image.draft(None, (metadata["decode_at_least"],) * 2)  # a large JPEG is reduced while it is decoded
image = ImageOps.exif_transpose(image)
if image.has_transparency_data:
    image = image.convert("RGBA")

if image.mode == "RGBA" and image.getchannel("A").getextrema() != (0, 0):  # 0 everywhere means no alpha
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)

"""

_DEEP_IMAGE = """\
image = Image.open({image})
if image.mode.startswith("I"):  # 16-bit grey: the value range of training; scale colours in the same way
    low, high = metadata["preprocessing"]["value_range"]
    scaled = (numpy.array(image) / 65535 - low) / (high - low)
    image = Image.fromarray(numpy.rint(255 * scaled.clip(0, 1)).astype("uint8"))
"""

_ONNX = """\
import json, numpy, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({file})
metadata = json.loads(session.get_modelmeta().custom_metadata_map["{key}"])
"""

_TORCH = """\
import json, numpy, torch
from PIL import Image, ImageOps

extra = {{"{key}.json": ""}}
program = torch.export.load({file}, extra_files=extra).module()
metadata = json.loads(extra["{key}.json"])
"""

_TIMM = """\
import timm, torch
from PIL import Image, ImageOps

model = timm.create_model({name}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open({image})
image.draft(None, ({least}, {least}))  # a large JPEG is reduced while it is decoded, as Headstart does
image = ImageOps.exif_transpose(image).convert("RGB")
with torch.inference_mode():
    [scores] = model(transform(image)[None]).softmax(1).tolist()

print(model.pretrained_cfg["label_names"][scores.index(max(scores))], max(scores))
"""

_OPENVINO = """\
import json, numpy, openvino
from PIL import Image, ImageOps

core = openvino.Core()
model = core.read_model({file})
metadata = json.loads(model.get_rt_info("{key}").astype(str))
program = core.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})  # not bfloat16, which differs
"""

_PYTHON = {
    ".onnx": (_ONNX, 'session.run(None, {"pixels": pixels})'),
    ".pt2": (_TORCH, "program(torch.from_numpy(pixels))"),
    ".xml": (_OPENVINO, "program(pixels).values()"),
}
"""Suffix of a file -> code that opens it, and the expression that computes its outputs."""

_JAVASCRIPT = """\
import fs from "node:fs";
import * as ort from "onnxruntime-web"; // or onnxruntime-node
import sharp from "sharp";

const file = fs.readFileSync({file});
const metadata = JSON.parse(file.subarray(file.lastIndexOf('{{"headstart_export"')));
const session = await ort.InferenceSession.create(file);
const image = sharp({image}).rotate().flatten({{ background: "white" }}).toColourspace("srgb").raw();
const {{ data, info }} = await image.toBuffer({{ resolveWithObject: true }});
const pixels = new ort.Tensor("uint8", data, [1, info.height, info.width, 3]);
const {{ {outputs} }} = await session.run({{ pixels }});
"""

_CPP = """\
// g++ -std=c++17 classify.cpp -lonnxruntime, with headers and library of ONNX Runtime 1.17 or newer
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

class Classifier {{
    Ort::Env env;
    Ort::Session session;
    const std::vector<std::string> classes = {{{classes}}};

public:
    explicit Classifier(const ORTCHAR_T* file) : session(env, file, Ort::SessionOptions()) {{}}

    // The answer for upright, opaque pixels of any size, row by row as red, green, blue; and its probability.{deep}
    std::pair<std::string, float> predict(std::vector<uint8_t>& rgb, int64_t width, int64_t height) {{
        const std::vector<int64_t> shape = {{1, height, width, 3}};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto pixels = Ort::Value::CreateTensor(memory, rgb.data(), rgb.size(), shape.data(), shape.size());
        const char* input = "pixels";
        const char* outputs[] = {{{outputs}}};
        const auto found = session.Run(Ort::RunOptions(), &input, &pixels, 1, outputs, {count});
        const float* scores = found[0].GetTensorData<float>();
        {answer}
    }}
}};

int main(int count, char** names) {{ // name of a binary PPM file, such as ImageMagick writes
    std::ifstream file(count > 1 ? names[1] : "image.ppm", std::ios::binary);
    std::string kind;
    int64_t width = 0, height = 0, white = 0;
    file >> kind >> width >> height >> white;
    if (!file || kind != "P6" || white != 255) return std::cerr << "expected a binary PPM file\\n", 1;
    std::vector<uint8_t> rgb(width * height * 3);
    file.ignore(1).read(reinterpret_cast<char*>(rgb.data()), rgb.size());
    if (!file) return std::cerr << "the PPM file is too short\\n", 1;
    const auto [answer, probability] = Classifier(ORT_TSTR({file})).predict(rgb, width, height);
    std::cout << answer << " " << probability << "\\n";
}}"""

_CPP_BEST = "const float* best = std::max_element(scores, scores + classes.size());"
_CPP_CLASS = "return {classes[best - scores], *best};"

_CPP_LABELS = """\
const std::vector<double> thresholds = {{{thresholds}}};
        std::pair<std::string, float> labels = {{"", 1}}; // joined, and the lowest of their probabilities
        for (size_t i = 0; i < classes.size(); i++) {{
            if (scores[i] < thresholds[i]) continue;
            labels.first += (labels.first.empty() ? "" : ", ") + classes[i];
            labels.second = std::min(labels.second, scores[i]);
        }}
        return labels;"""

_CPP_OUTLIER = "if (found[1].GetTensorData<float>()[0] > {above!r}) return {{{none}, *best}};"

_CPP_DEEP = """
    // Images of more than 8 bits: make each value 255 * (value / white - {low}) / ({high} - {low}), rounded, within 0
    // to 255; white is 65535 for 16 bits."""

_BROWSER = """\
// in <script type="module"> of a page beside the folder
import {{ load }} from {place};

const model = await load();
const image = await (await fetch({image})).blob(); // or a file, a bitmap, a canvas, a video
const {{ {shown} }} = await model.predict(image);
console.log({shown});"""


def python_snippet(file: Path, metadata: ExportMetadata, image: str = IMAGE) -> str:
    """Python code that prints the answer and its probability, and decodes images exactly as Headstart does.

    Args:
        file: the .onnx, .pt2 or .xml file.
        metadata: of the file.
        image: path of the image to predict.
    """
    opening, run = _PYTHON[file.suffix.lower()]
    parts = {"file": json.dumps(str(file)), "key": KEY}
    names = "probabilities" if metadata.none_above is None else "probabilities, outlier"
    lines = [f"[{names}] = {run}", *answer_lines(metadata)]
    return opening.format(**parts) + decoding_code(metadata, json.dumps(image)) + "\n".join(lines)


def answer_lines(metadata: ExportMetadata) -> list[str]:
    """Python code from ``probabilities`` and ``outlier`` to what is printed."""
    lines = ["scores = probabilities[0].tolist()"]
    if metadata.thresholds is None:
        lines += ['answer = metadata["classes"][scores.index(max(scores))]']
        shown = "answer, max(scores)"
    else:
        lines += [
            'answer = [row for row in zip(metadata["classes"], scores, metadata["thresholds"]) if row[1] >= row[2]]'
        ]
        shown = "answer"
    if metadata.none_above is not None:
        lines += ['if outlier[0] > metadata["none_above"]:', '    answer = metadata["none"]', ""]
    return [*lines, f"print({shown})"]


def decoding_code(metadata: ExportMetadata, image: str) -> str:
    """Python code that decodes an image as Headstart does, to ``pixels`` of shape (1, H, W, 3).

    Args:
        metadata: of the file; the code reads it as ``metadata``.
        image: an expression, the path of the image.
    """
    return image_code(metadata, image) + 'pixels = numpy.array(image.convert("RGB"))[None]\n'


def image_code(metadata: ExportMetadata, image: str) -> str:
    """Python code that decodes a file to ``image``, upright and without transparency; arguments as above."""
    decoding = _IMAGE if metadata.value_range is None else _DEEP_IMAGE + _IMAGE.partition("\n")[2]
    return decoding.format(image=image)


def timm_snippet(name: str, metadata: ExportMetadata, image: str = IMAGE) -> str:
    """Python code that prints the class with the highest probability, with timm alone.

    Args:
        name: of the network for ``timm.create_model``, "local-dir:FOLDER" or "hf-hub:OWNER/NAME".
        metadata: of the folder.
        image: path of the image to predict.
    """
    return _TIMM.format(name=json.dumps(name), image=json.dumps(image), least=metadata.decode_at_least)


def javascript_snippet(file: Path, metadata: ExportMetadata, image: str = IMAGE) -> str:
    """The same for Node, as a module (.mjs); its decoder differs from Pillow by one or two grey levels.

    Args:
        file: the .onnx file.
        metadata: of the file.
        image: path of the image to predict.
    """
    names = "probabilities" if metadata.none_above is None else "probabilities, outlier"
    lines = ["const scores = [...probabilities.data];"]
    if metadata.thresholds is None:
        lines += ["let answer = metadata.classes[scores.indexOf(Math.max(...scores))];"]
        shown = "answer, Math.max(...scores)"
    else:
        lines += ["let answer = metadata.classes.filter((_, i) => scores[i] >= metadata.thresholds[i]);"]
        shown = "answer"
    if metadata.none_above is not None:
        lines += ["if (outlier.data[0] > metadata.none_above) answer = metadata.none;"]
    text = _JAVASCRIPT.format(file=json.dumps(str(file)), image=json.dumps(image), outputs=names)
    if metadata.value_range is not None:
        lines.insert(0, "// images of more than 8 bits must be scaled by metadata.preprocessing.value_range first")
    return text + "\n".join([*lines, f"console.log({shown});"])


def cpp_snippet(file: Path, metadata: ExportMetadata) -> str:
    """A C++ program that prints the answer for a PPM file and its probability, with ONNX Runtime alone.

    Args:
        file: the .onnx file.
        metadata: of the file.
    """
    outputs = OUTPUTS[: 1 if metadata.none_above is None else 2]
    lines = [_CPP_BEST] if metadata.thresholds is None or metadata.none_above is not None else []
    if metadata.none_above is not None:
        lines.append(_CPP_OUTLIER.format(above=metadata.none_above, none=_cpp_text(metadata.none)))
    if metadata.thresholds is None:
        lines.append(_CPP_CLASS)
    else:
        lines.append(_CPP_LABELS.format(thresholds=", ".join(map(repr, metadata.thresholds))))
    low, high = metadata.value_range or (0, 1)
    return _CPP.format(
        classes=", ".join(map(_cpp_text, metadata.classes)),
        outputs=", ".join(f'"{name}"' for name in outputs),
        count=len(outputs),
        answer="\n        ".join(lines),
        deep="" if metadata.value_range is None else _CPP_DEEP.format(low=low, high=high),
        file=_cpp_text(str(file)),
    )


def _cpp_text(text: str) -> str:
    """A string literal; JSON's, but for control characters, which C++ does not accept as universal names.

    Other characters that are not printed are escaped, such as those that change the direction of the text after them.
    """
    literal = json.dumps(text, ensure_ascii=False)
    octal = re.sub(r"\\u00([01][0-9a-f])", lambda found: f"\\{int(found[1], 16):03o}", literal)
    return "".join(c if c.isprintable() or ord(c) < 0xA0 else f"\\U{ord(c):08x}" for c in octal)


def page_snippet(folder: Path, metadata: ExportMetadata) -> str:  # noqa: ARG001  # as the others
    """Shell command that serves the folder of a page to this machine."""
    return f"python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(folder))}  # then open http://127.0.0.1:8000"


def browser_snippet(folder: Path, metadata: ExportMetadata) -> str:
    """JavaScript module for a page beside the exported folder."""
    place = json.dumps(f"./{folder.name}/headstart-web.js")
    shown = "answer, probability" if metadata.thresholds is None else "answer, labels"
    return _BROWSER.format(place=place, image=json.dumps(IMAGE), shown=shown)
