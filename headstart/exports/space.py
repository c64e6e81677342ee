"""A Gradio Space: an ONNX file, and a page for it that needs Gradio, NumPy, Pillow and ONNX Runtime alone."""

from __future__ import annotations

import json
import textwrap

from headstart.backbone.licenses import license_text
from headstart.exports.metadata import KEY, ExportMetadata
from headstart.exports.snippets import decoding_code
from headstart.model import Model

APP_FILE, MODEL_FILE, REQUIREMENTS_FILE, CARD_FILE = "app.py", "model.onnx", "requirements.txt", "README.md"
SPACE_FILES = (APP_FILE, MODEL_FILE, REQUIREMENTS_FILE, CARD_FILE)

GRADIO_VERSION = "6.31.0"
"""The version with which the page was tested, and which the Space runs."""

REQUIREMENTS = f"""\
gradio>=5,<={GRADIO_VERSION}
numpy>=2,<3
onnxruntime>=1.17,<2
pillow>=11.3
"""

_APP = """\
\"\"\"A page for an image classifier. Start it: python app.py. Answers as JSON lines: python app.py IMAGE ...\"\"\"

import json
import os
import sys

import numpy
import onnxruntime
from PIL import Image, ImageOps

TITLE = {title}
session = onnxruntime.InferenceSession(os.path.join(os.path.dirname(os.path.abspath(__file__)), "{file}"))
metadata = json.loads(session.get_modelmeta().custom_metadata_map["{key}"])


def classify(path):
    \"\"\"The answer in words, and class name -> probability.\"\"\"
{decoding}
    probabilities, *outliers = session.run(None, {{"pixels": pixels}})
    scores = dict(zip(metadata["classes"], probabilities[0].tolist(), strict=True))
    if outliers and outliers[0][0] > metadata["none_above"]:
        return metadata["none"], scores
    if metadata["thresholds"] is not None:
        limits = dict(zip(metadata["classes"], metadata["thresholds"], strict=True))
        labels = [name for name in sorted(scores, key=scores.get, reverse=True) if scores[name] >= limits[name]]
        return ", ".join(labels), scores
    best = max(scores, key=scores.get)
    return (metadata["unsure"] if scores[best] < metadata["unsure_below"] else best), scores


def page():
    \"\"\"The page: an image on the left, the answer and the most probable classes on the right.\"\"\"
    import gradio

    def shown(path):
        if path is None:
            return "", {{}}
        try:
            return classify(path)
        except Exception as error:  # Pillow raises a dozen types for damaged files
            raise gradio.Error(f"This file cannot be read as an image: {{error}}") from error

    return gradio.Interface(
        shown,
        gradio.Image(type="filepath", image_mode=None, label="Image"),  # the file as it was uploaded
        [gradio.Textbox(label="Answer"), gradio.Label(num_top_classes=5, label="Probabilities")],
        title=TITLE,
        flagging_mode="never",
        api_name="predict",
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            answer, found = classify(name)
            print(json.dumps({{"path": name, "answer": answer, "probabilities": found}}))
    else:
        page().launch()
"""

_CARD = """\
---
title: {title}
emoji: 🖼️
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
app_file: {app}
pinned: false
tags: [image-classification, headstart]
---

# {heading}

Image classifier with {count} classes, trained by transfer learning with Headstart from {backbone}. Answers are
calibrated probabilities{none}.

    pip install -r {requirements}
    python {app}              # a page on http://127.0.0.1:7860
    python {app} image.jpg    # an answer as a line of JSON

Licence of the pretrained weights: {license}. Licence of this model: not set. Choose one that the images and these
weights permit.
"""


def app_code(title: str, metadata: ExportMetadata) -> str:
    """Content of ``app.py``.

    Args:
        title: of the page.
        metadata: of the ONNX file beside it.
    """
    decoding = textwrap.indent(decoding_code(metadata, "path"), "    ").rstrip()
    return _APP.format(title=repr(title), file=MODEL_FILE, key=KEY, decoding=decoding)


def space_card(title: str, model: Model) -> str:
    """Content of ``README.md``: the Space's settings in front matter, and how to run it elsewhere.

    Args:
        title: of the Space.
        model: the exported model.
    """
    return _CARD.format(
        title=json.dumps(title, ensure_ascii=False),
        heading=title,
        gradio=GRADIO_VERSION,
        app=APP_FILE,
        requirements=REQUIREMENTS_FILE,
        count=len(model.classes),
        backbone=model.net.backbone.architecture,
        none="" if model.ood_detector is None else ', or "none of these" for images unlike the training images',
        license=license_text(model.net.backbone.license),
    )
