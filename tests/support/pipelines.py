"""A program that classifies images with timm and transformers alone, from the repository ``me/small`` of a hub."""

PIPELINES = """
import json, sys
import timm, torch
from PIL import Image, ImageOps

with_transformers, *paths = sys.argv[1:]
model = timm.create_model("hf-hub:me/small", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names, answers = model.pretrained_cfg["label_names"], {"timm": [], "transformers": []}
for path in paths:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    with torch.inference_mode():
        scores = model(transform(image)[None]).softmax(1)[0]
    answers["timm"].append([names[scores.argmax()], float(scores.max())])
if with_transformers == "1":
    from transformers import pipeline
    classify = pipeline("image-classification", model="me/small", device="cpu")
    assert type(classify.model).__name__ == "TimmWrapperForImageClassification"
    answers["transformers"] = [[found[0]["label"], found[0]["score"]] for found in classify(paths)]
assert "headstart" not in sys.modules
print(json.dumps(answers))
"""
