"""Backbones side by side: the features of every network, cut and trained as one network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from random_images import write_classes
from served import served
from torch.nn.functional import cross_entropy

import headstart as hs
from headstart.backbone.feature_spec import FeatureSpec
from headstart.backbone.licenses import license_kind, license_text, together
from headstart.backbone.names import resolve_architecture
from headstart.backbone.pixel_net import FeatureNet, split_backbone
from headstart.backbone.side_by_side import SideBySide
from headstart.backbone.weights import build_architecture, fingerprint, load_backbone, preprocessing_of, random_backbone
from headstart.errors import LicenseError, OptionError
from headstart.training.heads import linear_head, mean_of_linear
from headstart.training.ladder import boundary_before, considered_layers
from headstart.training.suffix_classifier import SuffixClassifier

PAIR = "tf_efficientnet_lite1+tf_efficientnet_lite0"
QUICK = {"effort": "quick", "unfreeze": "first.blocks.6", "epochs": 2, "views": 1, "device": "cpu"}


def test_features_are_those_of_all_networks_each_normalised_as_it_expects() -> None:
    whole = random_backbone("test_resnet+test_vit3+test_convnext", image_size=96)
    module, pixels = whole.module, torch.rand(2, 3, 96, 96)
    assert isinstance(module, SideBySide)
    members = [build_architecture(name, image_size=96) for name in ("test_resnet", "test_vit3", "test_convnext")]
    parts = [module.first, *(other[-1] if isinstance(other, torch.nn.Sequential) else other for other in module.others)]
    expected = []
    for member, part in zip(members, parts, strict=True):
        member.load_state_dict(part.state_dict())
        size = preprocessing_of(member)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (size.mean, size.std))
        expected.append(member.eval()((pixels - mean) / std))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (whole.preprocessing.mean, whole.preprocessing.std))
    found = module((pixels - mean) / std)
    assert torch.allclose(found, torch.cat(expected, 1), atol=1e-4)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("with_layers", [False, True])
def test_a_suffix_after_a_prefix_is_the_whole_at_every_boundary(with_layers: bool) -> None:
    """Law 1."""
    backbone = load_backbone(PAIR)
    plain = split_backbone(backbone)
    layers = considered_layers(plain) if with_layers else ()
    split = split_backbone(backbone, FeatureSpec(layers=layers))
    assert not split.obstacle
    assert all(name.startswith("first.") for name in layers)
    size = backbone.preprocessing
    x = torch.randn(2, 3, size.height, size.width)
    with torch.inference_mode():
        expected = split.whole()(x)
        for boundary in split.boundaries:
            found = split.suffix(boundary.name)(split.prefix(boundary.name)(x))
            assert torch.allclose(found, expected, atol=1e-4), boundary.name
            if boundary.name not in ("input", "head"):
                before, after = split.halves(boundary.name)
                assert torch.allclose(after(*before(x)), expected, atol=1e-4), boundary.name
                features, *values = split.tapped(boundary.name)(x)
                assert torch.allclose(features, expected, atol=1e-4)
                rows = torch.cat([value.flatten(1) for value in values], 1)
                assert torch.equal(rows, split.prefix(boundary.name)(x)), boundary.name
        inner = split.boundaries[1:-1]
        for before, after in pairwise(inner):
            between = split.segment(before.name, after.name)(split.prefix(before.name)(x))
            assert torch.allclose(between, split.prefix(after.name)(x), atol=1e-4), (before.name, after.name)
    assert all(len(boundary.other_shapes) == 1 for boundary in inner), "both networks are cut"
    assert [b.depth for b in inner] == sorted(b.depth for b in inner)
    assert all(abs(b.depth - b.cost_before) < 0.25 for b in inner), "at about the same depth"


@pytest.mark.parametrize("name", ["resnet18+resnet18", "resnet18+resnet34+resnet50+resnet101"])
def test_a_network_and_itself_or_too_many_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="expected 2 to 3 different networks"):
        resolve_architecture(name)


@pytest.mark.usefixtures("small_networks")
def test_a_weight_file_is_for_one_network(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="only for a single backbone"):
        load_backbone(PAIR, weights=tmp_path / "x.safetensors")


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "max"}, "pool 'max': cannot be changed for backbones side by side"),
        ({"cut": "first.blocks.4"}, "cut 'first.blocks.4': cannot be changed for backbones side by side"),
        ({"unfreeze": "others.0"}, "no such layer group"),
        ({"backbone": "tf_efficientnet_lite1+"}, "a name is missing"),
    ],
)
def test_what_only_a_single_network_can_is_refused(
    options: dict[str, str], words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        hs.train(data, out=tmp_path / "run", device="cpu", **({"backbone": PAIR} | options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_networks")
def test_all_is_every_weight_of_both_networks() -> None:
    split = split_backbone(load_backbone(PAIR))
    boundary = boundary_before("all", split)
    names = {name for _, part in split.parts(boundary.name) for name in part}
    assert names == {name for name, _ in split.module.named_parameters()}


@pytest.mark.usefixtures("small_networks")
def test_each_network_learns_as_if_it_were_alone() -> None:
    """The gradient of each one's weights is that of the network alone with its part of the head, in another scale."""
    backbone = load_backbone(PAIR)
    split, size = split_backbone(backbone), backbone.preprocessing
    name = boundary_before("first.blocks.6", split).name
    widths, x = split.feature_widths, torch.randn(4, 3, size.height, size.width)
    rows = split.prefix(name)(x).detach()
    generator = torch.Generator().manual_seed(0)
    alone = [linear_head(*(torch.randn(s, generator=generator).numpy() for s in ((3, w), (3,)))) for w in widths]
    classifier = SuffixClassifier(split, name, mean_of_linear(alone))
    labels = torch.tensor([0, 1, 2, 0])
    logits = classifier.logits_by_network(rows)
    assert torch.allclose(logits.mean(0), classifier(rows), atol=1e-4)
    torch.stack([cross_entropy(one, labels) for one in logits]).mean().backward()
    features = classifier.suffix(rows).split(list(widths), 1)
    for network, head, own in zip(("first", "others.0"), alone, features, strict=True):
        trained = {n: p for n, p in classifier.trainable().items() if n.startswith(f"backbone.{network}.")}
        expected = torch.autograd.grad(
            cross_entropy(own @ head[0].weight.T + classifier.head[0].bias, labels), list(trained.values())
        )
        for (n, parameter), gradient in zip(trained.items(), expected, strict=True):
            assert torch.allclose(2 * parameter.grad, gradient, atol=1e-5, rtol=1e-3), n
    rates = {group["lr"] for group in classifier.parameter_groups(1.0, decay=0.5)}
    assert min(rates) >= 0.5 ** max(sum(o == n for o in classifier.owners) for n in ("first", "others.0"))


def test_of_several_licences_the_strictest_decides() -> None:
    assert license_kind(together(["apache-2.0", "mit", "apache-2.0"])) == "permissive"
    assert together(["apache-2.0", "mit", "apache-2.0"]) == "apache-2.0 + mit"
    assert license_kind("apache-2.0 + unknown") == "unknown"
    assert license_kind("unknown + cc-by-nc-4.0") == "restricted"
    assert "no commercial use" in license_text("mit + cc-by-nc-4.0")
    with pytest.raises(LicenseError):
        load_backbone("resnet18+resnet50.fb_swsl_ig1b_ft_in1k")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("d") / "colours", {"blue": 30, "green": 30, "red": 30})


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_a_run_is_as_with_a_single_network(data: Path, tmp_path: Path) -> None:
    """Model file, prediction, evaluation, report, heat map and export."""
    run = hs.train(data, backbone=PAIR, out=tmp_path / "run", **QUICK)  # type: ignore[arg-type]
    assert run.rungs[-1].name == "fine-tune from first.blocks.6"
    model = hs.load(run.folder)
    assert model.net.backbone.architecture == "tf_efficientnet_lite1.in1k+tf_efficientnet_lite0.in1k"
    before = load_backbone(PAIR).module
    assert isinstance(before, SideBySide)
    after = model.net.backbone.module
    assert isinstance(after, SideBySide)
    for part in ("first", "others"):
        one, other = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert fingerprint(one) != fingerprint(other), "both are fine-tuned"
        assert all(torch.equal(one[n], other[n]) for n in one if "blocks.3" in n), "both are frozen before"
    images = sorted((data / "red").iterdir())[:3]
    predicted = [model.predict(image) for image in images]
    assert [one.label for one in predicted] == ["red"] * 3
    assert "first.blocks.6" in run.report_path.read_text()
    assert "data:image/jpeg" in run.report_path.read_text()
    assert "timm/tf_efficientnet_lite0.in1k" in (run.folder / "README.md").read_text()
    exported = hs.export(run.folder, out=tmp_path / "model.onnx")  # compares it with the model, in a new process
    assert not exported.faults
    with served(model) as server:
        said = server.predict(("a.jpg", images[0].read_bytes())).json()
    own = {one["label"]: one["probability"] for one in said["predictions"][0]["probabilities"]}
    assert own == pytest.approx(dict(predicted[0].top), abs=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_earlier_layers_are_those_of_the_first_network(data: Path, tmp_path: Path) -> None:
    run = hs.train(data, backbone=PAIR, layers="first.blocks.5", effort="probe", device="cpu", out=tmp_path / "run")
    net = hs.load(run.folder).net
    assert isinstance(net, FeatureNet)
    assert net.spec.layers == ("first.blocks.5",)
