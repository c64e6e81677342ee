"""Candidates: the backbones that are considered for a data set, and where their weights come from.

``DECLARED`` is the table of the candidates that Headstart knows; ``find_candidates`` reads what the user asked for.
docs/how-to/backbones.md gives the evidence for the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import timm

from headstart.backbone.compute_cost import compute_cost
from headstart.backbone.hub_weights import cached_file, cached_names, download_bytes
from headstart.backbone.licenses import license_of, license_of_file, require_accepted, together
from headstart.backbone.names import resolve_architecture
from headstart.backbone.offline_packages import OFFLINE_PACKAGES, offline_file, offline_name
from headstart.backbone.side_by_side import member_names
from headstart.backbone.weights import Backbone, load_backbone, native_side
from headstart.data.preprocessing import Fit
from headstart.errors import LicenseError, OptionError, WeightsError, first_line
from headstart.files import user_path
from headstart.progress import Progress, SilentProgress, with_example

Group = Literal["offline", "recommended"]
Origin = Literal["package", "cache", "file", "download"]

CACHED = "cached"
"""The word for all weights in timm's local cache."""


@dataclass(frozen=True)
class DeclaredCandidate:
    """A candidate of the table.

    Attributes:
        architecture: timm's name with the tag of the weights.
        image_size: side of the square input in pixels.
        parameters: number of weights without the classifier.
        gmacs: multiply-accumulate operations for one image of this size, in billions.
        license: as timm states it.
        group: the word that includes it.
        why: the reason to consider it.
    """

    architecture: str
    image_size: int
    parameters: int
    gmacs: float
    license: str
    group: Group
    why: str


DECLARED = (
    DeclaredCandidate(
        "tf_efficientnet_lite0.in1k",
        224,
        3_371_008,
        0.384,
        "apache-2.0",
        "offline",
        "installed with Headstart; the smallest of the three",
    ),
    DeclaredCandidate(
        "tf_efficientnet_lite1.in1k",
        240,
        4_135_680,
        0.599,
        "apache-2.0",
        "offline",
        "installed with Headstart; deeper than Lite0, for larger images",
    ),
    DeclaredCandidate(
        "tf_efficientnet_lite2.in1k",
        260,
        4_811_072,
        0.858,
        "apache-2.0",
        "offline",
        "installed with Headstart; the most accurate of the three on ImageNet",
    ),
    DeclaredCandidate(
        "hgnetv2_b0.ssld_stage1_in22k_in1k",
        224,
        3_947_550,
        0.319,
        "apache-2.0",
        "recommended",
        "as cheap as Lite0; distilled for transfer, with images of ImageNet-22k",
    ),
    DeclaredCandidate(
        "hgnetv2_b2.ssld_stage1_in22k_in1k",
        224,
        9_172_356,
        1.136,
        "apache-2.0",
        "recommended",
        "fast on CPUs and GPUs; distilled for transfer, with images of ImageNet-22k",
    ),
    DeclaredCandidate(
        "mobilenetv4_conv_medium.e500_r256_in1k",
        256,
        8_434_512,
        1.079,
        "apache-2.0",
        "recommended",
        "designed to be fast on phones, CPUs and GPUs",
    ),
    DeclaredCandidate(
        "convnext_nano.in12k_ft_in1k",
        224,
        14_952_560,
        2.445,
        "apache-2.0",
        "recommended",
        "pretrained on about 12,000 classes of ImageNet",
    ),
    DeclaredCandidate(
        "convnext_tiny.in12k_ft_in1k",
        224,
        27_820_128,
        4.455,
        "apache-2.0",
        "recommended",
        "pretrained on about 12,000 classes of ImageNet; larger than nano",
    ),
    DeclaredCandidate(
        "tiny_vit_21m_224.dist_in22k_ft_in1k",
        224,
        20_621_568,
        4.25,
        "apache-2.0",
        "recommended",
        "a small transformer, distilled on about 22,000 classes of ImageNet",
    ),
    DeclaredCandidate(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        224,
        21_629_952,
        6.228,
        "apache-2.0",
        "recommended",
        "self-supervised on 142 million images; features for linear classifiers",
    ),
    DeclaredCandidate(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        224,
        85_727_232,
        23.539,
        "apache-2.0",
        "recommended",
        "self-supervised on 142 million images; for a GPU",
    ),
    DeclaredCandidate(
        "vit_base_patch16_siglip_224.v2_webli",
        224,
        92_884_224,
        17.708,
        "apache-2.0",
        "recommended",
        "trained on images with text from the web; for a GPU",
    ),
    DeclaredCandidate(
        "vit_pe_core_base_patch16_224.fb",
        224,
        92_886_528,
        17.802,
        "apache-2.0",
        "recommended",
        "trained on images and videos with text; for a GPU",
    ),
)
"""The table of candidates, smallest first in each group."""


@dataclass(frozen=True)
class Candidate:
    """A backbone that is considered.

    Attributes:
        architecture: timm's name, with the tag of the weights unless they come from a file.
        weights: the file that the user gave; None for pretrained weights by name.
        image_size: side of the square input in pixels.
        parameters: number of weights without the classifier.
        gmacs: multiply-accumulate operations for one image, in billions.
        license: of the weights, "unknown" if nobody states it.
        why: the reason to consider it.
        origin: where the weights are: an installed package, timm's cache, a file, or to be downloaded.
        source: the same in words: the package, the repository on the hub, or the name of the file.
        download_bytes: size of the download; 0 if there is nothing to download.
        accept_license: whether the user accepts a licence that is restricted.
        fit: how an image is fitted into the input, see ``preprocessing.Fit``.
    """

    architecture: str
    weights: Path | None
    image_size: int
    parameters: int
    gmacs: float
    license: str
    why: str
    origin: Origin
    source: str
    download_bytes: int = 0
    accept_license: bool = False
    fit: Fit = "auto"

    @property
    def is_combination(self) -> bool:
        """Whether it is several networks side by side."""
        return len(member_names(self.architecture)) > 1

    @property
    def label(self) -> str:
        """In words: "resnet50 at 224 pixels", "resnet50 at 224 pixels, pad"."""
        return f"{self.architecture} at {self.image_size} pixels" + ("" if self.fit == "auto" else f", {self.fit}")


LARGER = 1.25
"""Side of the larger images that are tried, in multiples of that of the weights, rounded up to whole ``STRIDE``."""

STRIDE = 32
"""Pixels of the input for each position of the last activation of most networks."""


def variants(candidate: Candidate) -> list[Candidate]:
    """A candidate with larger images, and with the other ways to fit an image into the input.

    Networks that accept images of one size only have no larger images; a fit that the user named is kept.
    """
    side = -(-round(LARGER * candidate.image_size) // STRIDE) * STRIDE
    found = []
    try:
        cost = compute_cost(candidate.architecture, side)
    except OptionError:
        pass
    else:
        found.append(replace(candidate, image_size=side, gmacs=cost.gmacs, why="larger images"))
    fits = [fit for fit in get_args(Fit) if fit not in ("auto", "crop")] if candidate.fit == "auto" else []
    return [*found, *(replace(candidate, fit=fit, why=f"images fitted by {fit}") for fit in fits)]


def combined(members: Sequence[Candidate]) -> Candidate:
    """Candidates side by side, with image size and fit of the first.

    Args:
        members: two or three, of different architectures and without weights of the user's own.
    """
    first, name = members[0], "+".join(member.architecture for member in members)
    cost = compute_cost(name, first.image_size)
    return replace(
        first,
        architecture=name,
        parameters=cost.parameters,
        gmacs=cost.gmacs,
        license=together(member.license for member in members),
        why="side by side",
        source=" and ".join(dict.fromkeys(member.source for member in members)),
    )


def find_candidates(
    wanted: str | Sequence[str],
    *,
    image_size: int | None = None,
    fit: Fit = "auto",
    accept_license: bool = False,
    progress: Progress | None = None,
) -> tuple[Candidate, ...]:
    """Finds the candidates that a user asks for; nothing is downloaded.

    The network is used only to ask for the size of weights that are not on this machine, which only a name or
    ``recommended`` can ask for.

    Args:
        wanted: words separated by commas, or a sequence of them: ``offline`` (installed with Headstart), ``cached``
            (timm's weights in the local cache), ``recommended`` (the table), the name of a timm architecture, or
            ``NAME=FILE``. A sequence can contain files with a comma in their name.
        image_size: side of the input in pixels for every candidate; default: that of the table, else that of the
            weights.
        fit: how an image is fitted into the input of every candidate.
        accept_license: whether weights may be used whose licence is restricted. Without, such weights in the cache
            are left out.
        progress: receives a message about candidates in the cache that are left out.

    Returns:
        The candidates in the order in which they were asked for, each once.

    Raises:
        LicenseError: the licence of a named candidate is restricted, and was not accepted.
        OptionError: nothing was asked for, no such architecture, or none is in the cache.
        WeightsError: weights do not exist, or must be downloaded and the hub cannot be reached.
    """
    words = [word.strip() for word in (wanted.split(",") if isinstance(wanted, str) else wanted)]
    if not words or "" in words:
        raise OptionError(
            f"candidates {wanted!r}: expected offline, cached, recommended, a name, or NAME=FILE, separated by commas."
        )
    terms = _Terms(image_size, fit, accept_license, progress or SilentProgress())
    found: dict[tuple[str, Path | None], Candidate] = {}
    for candidate in (one for word in words for one in _candidates_of(word, terms)):
        found.setdefault((candidate.architecture, candidate.weights), candidate)
    if not found:
        raise OptionError(
            f"candidates {', '.join(words)}: timm's local cache contains no weights that can be used. Add offline, "
            "which needs no download, or a name."
        )
    return tuple(found.values())


def load_candidate(candidate: Candidate, *, progress: Progress | None = None) -> Backbone:
    """Loads the backbone of a candidate; downloads the weights where that is necessary.

    Args:
        candidate: see ``find_candidates``.
        progress: receives the progress of the download.

    Raises:
        LicenseError: the licence of the weights is restricted, and was not accepted.
        WeightsError: the weights cannot be loaded or downloaded.
        OptionError: the architecture does not accept images of this size.
    """
    return load_backbone(
        candidate.architecture,
        weights=candidate.weights,
        image_size=candidate.image_size,
        fit=candidate.fit,
        accept_license=candidate.accept_license,
        progress=progress,
    )


@dataclass(frozen=True)
class _Terms:
    """Arguments of ``find_candidates`` that hold for every candidate."""

    image_size: int | None
    fit: Fit
    accept_license: bool
    progress: Progress


def _candidates_of(word: str, terms: _Terms) -> Iterator[Candidate]:
    if word == CACHED:
        yield from _cached(terms)
    elif word in get_args(Group):
        yield from (_by_name(one.architecture, terms) for one in DECLARED if one.group == word)
    elif "=" in word:
        name, _, file = word.partition("=")
        yield _from_file(name.strip(), file.strip(), terms)
    else:
        yield _by_name(tagged_name(word), terms)


def _cached(terms: _Terms) -> Iterator[Candidate]:
    """Candidates in the local cache; those that cannot be used are reported."""
    restricted, unusable = list[str](), list[str]()
    for name in cached_names():
        try:
            yield _by_name(name, terms)
        except LicenseError:
            restricted.append(f"{name}: {license_of(name)}")
        except OptionError as error:
            unusable.append(f"{name}: {error}")
    if restricted:
        text = f"{len(restricted):,} cached candidate(s) with a restricted licence left out; --accept-license adds them"
        terms.progress.say(with_example(text, restricted))
    if unusable:
        terms.progress.say(with_example(f"{len(unusable):,} cached candidate(s) left out", unusable))


def tagged_name(name: str) -> str:
    """Timm's ``architecture.tag`` for a name in any spelling; without a tag, that of timm's default weights.

    Raises:
        OptionError: no such architecture, or timm has no weights for it.
    """
    resolved = resolve_architecture(name)
    if offline := offline_name(resolved):
        return offline
    config = timm.get_pretrained_cfg(resolved)
    if config is None or not config.has_weights:
        raise OptionError(f"candidate {name}: timm has no pretrained weights for it. Give a file: {name}=FILE.")
    return resolved if "." in resolved or not config.tag else f"{resolved}.{config.tag}"


def _by_name(name: str, terms: _Terms) -> Candidate:
    """The candidate of timm's ``architecture.tag``."""
    image_size, license = terms.image_size, license_of(name)
    require_accepted(f"candidate {name}", license, accepted=terms.accept_license)
    config = timm.get_pretrained_cfg(name)
    origin, source, size = _origin(name, config)
    declared = next((one for one in DECLARED if one.architecture == name), None)
    why = declared.why if declared else "in the local cache" if origin == "cache" else "named by the user"
    if declared is not None and image_size in (None, declared.image_size):
        side, parameters, gmacs = declared.image_size, declared.parameters, declared.gmacs
    else:
        side = image_size or (declared.image_size if declared else native_side(name))
        cost = compute_cost(name, side)
        parameters, gmacs = cost.parameters, cost.gmacs
    return Candidate(
        name, None, side, parameters, gmacs, license, why, origin, source, size, terms.accept_license, terms.fit
    )


def _origin(name: str, config: Any) -> tuple[Origin, str, int]:
    """Where pretrained weights are, in one word and in words, and the size of the download in bytes."""
    if name in OFFLINE_PACKAGES:
        offline_file(name)
        return "package", OFFLINE_PACKAGES[name].name, 0
    source = str(config.hf_hub_id or config.url)
    if cached_file(config) is not None:
        return "cache", source, 0
    try:
        return "download", source, download_bytes(config)
    except Exception as error:  # huggingface_hub raises errors of three kinds: hub, HTTP client and operating system
        raise WeightsError(
            f"candidate {name}: its weights are not in timm's cache and cannot be downloaded ({first_line(error)}). "
            f"Connect to the network, leave it out, or give a file with {name}=FILE."
        ) from error


def _from_file(name: str, file: str, terms: _Terms) -> Candidate:
    """The candidate of ``NAME=FILE``."""
    if not name or not file:
        raise OptionError(f"candidate {name}={file}: expected NAME=FILE, a timm architecture and its weights.")
    architecture, path = resolve_architecture(name), user_path(file)
    license = license_of_file(architecture)
    require_accepted(f"candidate {name}", license, accepted=terms.accept_license)
    if not path.is_file():
        raise WeightsError(f"candidate {name}: {path}: no such file. Give the path of its weights, {name}=FILE.")
    side = terms.image_size or native_side(architecture)
    cost = compute_cost(architecture, side)
    return Candidate(
        architecture,
        path,
        side,
        cost.parameters,
        cost.gmacs,
        license=license,
        why="weights given by the user",
        origin="file",
        source=path.name,
        accept_license=terms.accept_license,
        fit=terms.fit,
    )
