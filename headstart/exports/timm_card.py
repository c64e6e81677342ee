"""Card of a folder of a timm network: how to load it, and what timm's preprocessing does differently."""

from __future__ import annotations

from headstart.backbone.licenses import NOT_PRETRAINED, license_text
from headstart.extras import version_of
from headstart.figures import count_text, interval_text
from headstart.model import Model

LISTED_CLASSES = 50
"""Maximum number of classes that the card lists."""

USAGE = """\
```python
import timm, torch
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], float(probabilities.max()))
```

```python
from transformers import pipeline

print(pipeline("image-classification", model="{repository}")("image.jpg"))
```
"""

DIFFERENCES = """\
The weights are those of the Headstart model, with the temperature of its calibration folded into the classifier, so
that the probabilities are calibrated. Preprocessing is the same except for three things:

- Headstart decodes a JPEG whose shorter side is at least {twice} pixels at a half, a quarter or an eighth of its size;
  timm and transformers decode it at full size. On photographs of flowers that changes the probability by 0.006 in the
  median and by 0.05 at the 95th percentile.
- Images with an alpha channel are composited over white by Headstart; `convert("RGB")` drops the channel.
- Headstart resizes columns before rows; Pillow 13 reverses the order for tall images, which changes pixels by one or
  two grey levels.

timm has no "none of these"{unsure}.
"""


def timm_card(model: Model) -> str:
    """The card of a folder, as Markdown with the metadata of the hub in front matter."""
    backbone, names = model.net.backbone, model.classes
    base = [] if backbone.license == NOT_PRETRAINED else [f"base_model: timm/{backbone.architecture}"]
    front = ["library_name: timm", "pipeline_tag: image-classification", *base]
    listed = ", ".join(names[:LISTED_CLASSES]) + (f" and {len(names) - LISTED_CLASSES} more" * (len(names) > 50))
    scores = [
        f"- {name}: accuracy {count_text(s['correct'], s['count'])}, 95 % CI {interval_text(s['low'], s['high'])}"
        for name, s in model.scores.items()
    ]
    lines = [
        *("---", *front, "tags: [image-classification, timm, transformers, headstart]", "---", ""),
        f"# Image classifier with {len(names)} classes",
        "",
        f"Classes: {listed}.",
        f"Trained by transfer learning with Headstart {version_of('headstart')} from {backbone.architecture}.",
        *("", *scores, "", "## Use", "", usage("OWNER/NAME"), "## Differences from Headstart", "", differences(model)),
        f"Licence of the pretrained weights: {license_text(backbone.license)}. Licence of this model: not set. Choose "
        "one that the images and these weights permit, and add it above.",
    ]
    return "\n".join(lines) + "\n"


def usage(repository: str) -> str:
    """Code that loads a repository of the hub with timm and with transformers, as Markdown."""
    return USAGE.format(repository=repository)


def differences(model: Model) -> str:
    """What timm's preprocessing and answers lack, as Markdown."""
    threshold = model.calibration.threshold
    unsure = f' and no "unsure" (Headstart\'s answer below {threshold:.3f})' if threshold > 0 else ' and no "unsure"'
    return DIFFERENCES.format(twice=2 * model.preprocessing.decode_at_least, unsure=unsure)
