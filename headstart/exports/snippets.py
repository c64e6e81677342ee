"""Ten lines that use an exported file, in Python and in JavaScript, with the file's own name in them.

They stand at the left margin, with an empty line behind each block, so that an interactive interpreter takes them too.
"""

from __future__ import annotations

import json
from pathlib import Path

from headstart.exports.metadata import KEY, ExportMetadata

PICTURE = "picture.jpg"

PACKAGES = {
    "python": "numpy, onnxruntime, pillow",
    "torch": "numpy, torch, pillow",
    "javascript": "onnxruntime-web, sharp",
}

_PICTURE = """\
picture = Image.open({picture})
picture.draft(None, (metadata["decode_at_least"],) * 2)  # a large JPEG is reduced while it is decoded
picture = ImageOps.exif_transpose(picture)
if picture.has_transparency_data:
    picture = picture.convert("RGBA")

if picture.mode == "RGBA" and picture.getchannel("A").getextrema() != (0, 0):  # 0 everywhere means no alpha
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)

pixels = numpy.array(picture.convert("RGB"))[None]
"""

_DEEP_PICTURE = """\
picture = Image.open({picture})
if picture.mode.startswith("I"):  # grey of 16 bits: black and white as in training; colours: scale them likewise first
    low, high = metadata["preprocessing"]["value_range"]
    scaled = (numpy.array(picture) / 65535 - low) / (high - low)
    picture = Image.fromarray(numpy.rint(255 * scaled.clip(0, 1)).astype("uint8"))
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

_JAVASCRIPT = """\
import fs from "node:fs";
import * as ort from "onnxruntime-web"; // or onnxruntime-node
import sharp from "sharp";

const file = fs.readFileSync({file});
const metadata = JSON.parse(file.subarray(file.lastIndexOf('{{"headstart_export"')));
const session = await ort.InferenceSession.create(file);
const picture = sharp({picture}).rotate().flatten({{ background: "white" }}).toColourspace("srgb").raw();
const {{ data, info }} = await picture.toBuffer({{ resolveWithObject: true }});
const pixels = new ort.Tensor("uint8", data, [1, info.height, info.width, 3]);
const {{ {outputs} }} = await session.run({{ pixels }});
"""


def python_snippet(file: Path, metadata: ExportMetadata, picture: str = PICTURE) -> str:
    """Prints the answer and its probability; decodes as Headstart does, so that both are the model's own.

    Args:
        file: ONNX or .pt2.
        metadata: what it says of itself.
        picture: path of the picture.
    """
    torch = file.suffix.lower() == ".pt2"
    parts = {"file": json.dumps(str(file)), "picture": json.dumps(picture), "key": KEY}
    names = "probabilities" if metadata.none_above is None else "probabilities, outlier"
    run = "program(torch.from_numpy(pixels))" if torch else 'session.run(None, {"pixels": pixels})'
    lines = [f"[{names}] = {run}", "chances = probabilities[0].tolist()"]
    if metadata.thresholds is None:
        lines += ['answer = metadata["classes"][chances.index(max(chances))]']
        shown = "answer, max(chances)"
    else:
        lines += [
            'answer = [own for own in zip(metadata["classes"], chances, metadata["thresholds"]) if own[1] >= own[2]]'
        ]
        shown = "answer"
    if metadata.none_above is not None:
        lines += ['if outlier[0] > metadata["none_above"]:', '    answer = metadata["none"]', ""]
    decoding = _PICTURE if metadata.value_range is None else _DEEP_PICTURE + _PICTURE.partition("\n")[2]
    return (
        (_TORCH if torch else _ONNX).format(**parts) + decoding.format(**parts) + "\n".join([*lines, f"print({shown})"])
    )


def javascript_snippet(file: Path, metadata: ExportMetadata, picture: str = PICTURE) -> str:
    """Likewise for Node, as a module (.mjs); another decoder gives other pixels by a grey level or two.

    Args:
        file: ONNX.
        metadata: what it says of itself.
        picture: path of the picture.
    """
    names = "probabilities" if metadata.none_above is None else "probabilities, outlier"
    lines = ["const chances = [...probabilities.data];"]
    if metadata.thresholds is None:
        lines += ["let answer = metadata.classes[chances.indexOf(Math.max(...chances))];"]
        shown = "answer, Math.max(...chances)"
    else:
        lines += ["let answer = metadata.classes.filter((_, i) => chances[i] >= metadata.thresholds[i]);"]
        shown = "answer"
    if metadata.none_above is not None:
        lines += ["if (outlier.data[0] > metadata.none_above) answer = metadata.none;"]
    text = _JAVASCRIPT.format(file=json.dumps(str(file)), picture=json.dumps(picture), outputs=names)
    if metadata.value_range is not None:
        lines.insert(0, "// pictures of more than 8 bits must be scaled by metadata.preprocessing.value_range first")
    return text + "\n".join([*lines, f"console.log({shown});"])
