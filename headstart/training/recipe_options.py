"""Keyword arguments of ``train``, ``prepare``, ``check`` and ``compare``, with types for editors.

Generated from the declaration in ``training/recipe.py`` by ``scripts/generate_options.py``.
"""

from __future__ import annotations

from typing import TypedDict

from headstart.training.recipe import EffortName, FitName, PoolName, ProbeName, RangeName, TuneName


class RecipeOptions(TypedDict, total=False):
    """Options of a training run; see ``Recipe``."""

    effort: EffortName
    """How much to train at most. probe: fit a classifier on frozen features. quick, standard, thorough: fine-tune
    the last layers as well, and deeper ones as long as the gain is larger than noise. deep: fine-tune a third of
    the network at once. auto: quick if a fine-tuning option is given, else probe. Start with probe or quick.
    Default: auto."""

    backbone: str | None
    """Pretrained network, by its timm name, with or without the tag of its weights. Use a larger one for harder
    images; headstart layers NAME shows what it consists of. Default: auto (EfficientNet-Lite0, which needs no
    download)."""

    weights: str | None
    """File with weights for the backbone (.safetensors, .pth, .pt or .bin). Use it for weights that you trained or
    downloaded yourself. Default: auto (the pretrained weights of the backbone)."""

    accept_license: bool
    """Use pretrained weights whose licence restricts their use: no commercial use, research only, or special terms.
    Read the licence first. Default: off."""

    image_size: int | None
    """Side of the square input in pixels. Larger inputs show finer detail and take longer. Default: auto (the size
    that the weights were trained with)."""

    fit: FitName
    """How an image is fitted into the input. crop: centre crop. pad: the whole image with bars in the mean colour.
    squash: the whole image, aspect ratio not kept. auto: as the weights were trained, usually crop. Use pad or
    squash if the centre crop cuts off what matters. Default: auto."""

    pool: PoolName
    """Pooling of the backbone's feature map into one vector. auto: as the weights were trained. Default: auto."""

    cut: str | None
    """Truncate the backbone after this layer group; headstart layers lists them. Fewer layers are faster, and can
    suit images unlike those that the backbone was trained on. Default: auto (the end of the backbone)."""

    layers: str | None
    """Earlier layers whose averages are added to the features: names of layer boundaries, separated by commas
    (headstart layers lists them), or last for the last layer alone. They help with images unlike ImageNet. Default:
    auto (chosen by cross-validation if the classifier is a linear probe, else the last layer alone)."""

    value_range: RangeName
    """Scaling of images with more than 8 bits per channel. full: the full range of the file's type. data: the 0.5th
    to 99.5th percentile of the training images' values. Use data if such images look nearly black. Default:
    full."""

    val: float | None
    """Fraction of the images drawn for validation, if the data have no validation split. Default: auto (0.15; if
    the data have a test split but no val, 0.15 only if that is at least 100 images)."""

    test: float | None
    """Fraction of the images drawn for the test set, if the data have no splits. 0: no test set. Default: auto
    (0.15)."""

    seed: int
    """Seed of the drawn split, the folds of cross-validation, augmentation and training. Change it to see how much
    results vary. Default: 0."""

    probe: ProbeName
    """Classifier fitted on frozen features: logistic regression, a linear or Gaussian-kernel (rbf) support vector
    machine, k nearest neighbours by cosine similarity, or the nearest class mean. Compare them with headstart
    compare DATA --only probes. Default: logistic."""

    head: str
    """linear, or a head trained by gradient descent: hidden layer sizes and dropout (1024-512-0.2) or a 1x1
    convolution and pooling (conv1280-flatten). Separate several with commas; the best on validation images is kept.
    Default: linear."""

    head_epochs: int | None
    """Epochs for a head trained by gradient descent. Default: auto (10, or 30 with augmented views)."""

    head_lr: float | None
    """Learning rate for a head trained by gradient descent. Default: auto (several are tried, and the best on
    validation images is kept)."""

    single_logit: bool
    """With two classes, use one logit and binary cross-entropy instead of a softmax over two. Use it if another
    program expects one output. Default: off."""

    balance_classes: bool
    """Weight each class equally in the loss, however many images it has. Use it if rare classes matter as much as
    frequent ones. Default: off."""

    unfreeze: str | None
    """Fine-tune this layer group and all later ones (headstart layers lists them), or all. Default: auto (the
    depths that the chosen effort tries)."""

    tune: TuneName
    """Which weights of the fine-tuned layers are trained. full: all. bias-norm: biases and normalization layers.
    lora: a low-rank update of each linear layer, which is merged into its weights. The last two are for vision
    transformers: fewer weights are trained, at ten times the learning rate. auto: full. Default: auto."""

    lora_rank: int
    """Rank of the low-rank updates; requires tune lora. Higher ranks train more weights. Default: 8."""

    epochs: int | None
    """Epochs of fine-tuning at each depth. Default: auto (set by effort, and more for small data sets)."""

    lr: float | None
    """Learning rate of the head and the last layer group in fine-tuning. Lower it if the loss rises. Default: auto
    (set by depth and architecture)."""

    views: int | None
    """Augmented views of each training image, computed once and reused. More views help on small data sets and take
    longer. Default: auto (set by effort)."""

    fresh_views: bool
    """Compute a new augmented view of each image in every epoch instead of reusing views. Slower; use it for long
    training. Default: off."""

    flip: bool
    """Mirror training images horizontally as augmentation. Turn it off if a mirrored image means something else,
    such as text or left and right hands. Default: on."""

    label_smoothing: float | None
    """Label smoothing: fraction of the target spread evenly over all classes. Default: auto (0.05 or 0.1 by effort;
    0 with multi-label data)."""

    cutmix: float | None
    """CutMix: fraction of the batches in which a rectangle of each image's activations is replaced by that of
    another image. Default: auto (set by effort; 0 with multi-label data)."""

    mixup: float
    """Mixup: the activations of two images are blended, in batches without CutMix. The value is the parameter of
    the Beta distribution from which the proportion is drawn. 0: off; 0.2 is common. Default: 0.0."""

    feature_jitter: float
    """Feature augmentation: each channel of the activations is multiplied by a random factor with mean 1 and this
    standard deviation. 0: off. Default: 0.1."""

    update_batchnorm: bool
    """Let BatchNorm in the fine-tuned layers normalize by each batch and update its statistics, instead of keeping
    the pretrained ones. A training step takes about twice as long. Default: off."""

    gradual_unfreezing: bool
    """Continue each depth from the weights of the shallower one, instead of from the pretrained weights. Default:
    off."""

    scratch: bool
    """Train all layers from random weights. Only for comparison with transfer learning. Default: off."""

    extend: str | None
    """Keep the classes of this run or model file and add those of the data; pretrained: the classes that the
    backbone was trained on. Default: auto (train a new classifier)."""

    rehearsal: str | None
    """Folder of images of the existing classes (labels are not needed), so that the model does not forget these
    classes. Default: auto (the model's training images if they are found, else none)."""

    train_old_classes: bool
    """Train the weights of the existing classes as well as those of the new ones. Default: off."""

    target_accuracy: float
    """Accuracy that the model's answers should reach. On images where it is less certain, it answers "unsure".
    Default: 0.95."""
