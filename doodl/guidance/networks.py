"""Image classifiers from local files: timm, Hugging Face, checkpoints. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from doodl.errors import ModelError
from doodl.guidance.classes import labels_beside
from doodl.guidance.classifier import Classifier
from doodl.guidance.files import (
    LOAD_ERRORS,
    checked_labels,
    read_state,
    square,
)
from doodl.guidance.revisions import is_timm_name, split_class
from doodl.guidance.spec import POCKET_CLASSIFIER
from doodl.guidance.wsdan import IMAGENET_MEAN, IMAGENET_STD, build_wsdan, is_wsdan
from doodl.models.configs import check_configs, read_config
from doodl.models.weights import check_finite, check_loaded, load_tensors, one_line
from doodl.pocket import weights_dir

# config.json comes from outside: only these classes of transformers are made on its word.
_HF_CLASSES = frozenset(
    f"{name}ForImageClassification"
    for name in (
        "Beit", "Bit", "ConvNext", "ConvNextV2", "DeiT", "Dinov2", "Dinov2WithRegisters",
        "EfficientNet", "FocalNet", "Hiera", "MobileNetV1", "MobileNetV2", "MobileViT",
        "MobileViTV2", "PoolFormer", "PvtV2", "RegNet", "ResNet", "Segformer", "Siglip", "Swin",
        "Swinv2", "ViT",
    )
)  # fmt: skip
# The arguments of a timm model that its own config.json may set.
_TIMM_ARGUMENTS = frozenset({"img_size", "global_pool", "dynamic_img_size", "patch_size"})
_MAX_CLASSES = 100_000
# Pillow's numbers, as Hugging Face's preprocessor files have them.
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def load_classifier(
    value: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Classifier, str | None]:
    """Load the classifier of `MODEL` or `MODEL/CLASS`; return it and the class, if one is named.

    MODEL is one of: `pocket`; a folder with config.json and model.safetensors, timm's or Hugging
    Face's; a WS-DAN checkpoint file; NAME@FILE, a timm model's name and a file of its weights; a
    timm model's name alone, if its weights lie in the Hugging Face cache. Labels of a file are
    the lines of FILE's name with `.labels.txt` in place of its suffix, if that is there.
    Raises: ModelError if there is no such model, or it cannot be loaded.
    """
    model, label = split_class(value)
    if model == POCKET_CLASSIFIER:
        classifier = _from_folder(weights_dir() / "classifier", model)
    elif Path(model).is_dir():
        classifier = _from_folder(Path(model), model)
    elif Path(model).is_file():
        classifier = _from_wsdan(Path(model))
    else:
        name, _, file = model.partition("@")
        path = Path(file) if file else _cached_weights(name)
        classifier = _from_timm(name, path, labels=labels_beside(path) if file else ())
    if label is not None:
        try:
            classifier.class_index(label)
        except ValueError as error:  # known now, and no photo's fault
            raise ModelError(str(error)) from error
    return classifier.to(device=device).to_dtype(dtype), label


def _from_folder(folder: Path, name: str) -> Classifier:
    check_configs(folder)
    config = read_config(folder / "config.json")
    if "architecture" in config:
        return _timm_folder(folder, config, name)
    return _hugging_face(folder, config, name)


def _timm_folder(folder: Path, config: dict[str, Any], name: str) -> Classifier:
    preprocess = config.get("pretrained_cfg") or {}
    labels = config.get("label_names") or preprocess.get("label_names") or ()
    arguments = config.get("model_args") or {}
    strange = sorted(set(arguments) - _TIMM_ARGUMENTS - {"num_classes"})
    if strange:
        raise ModelError(f"{folder / 'config.json'}: model_args {', '.join(strange)} are unknown.")
    return _from_timm(
        str(config["architecture"]),
        folder / "model.safetensors",
        title=name,
        preprocess=preprocess,
        labels=labels,
        arguments={key: arguments[key] for key in arguments if key != "num_classes"},
    )


def _from_timm(
    name: str,
    path: Path,
    *,
    title: str | None = None,
    preprocess: Mapping[str, Any] | None = None,
    labels: Any = (),
    arguments: Mapping[str, Any] | None = None,
) -> Classifier:
    """Return a timm model with the weights of a file; the number of classes is the file's."""
    import timm

    if not is_timm_name(name):
        raise ModelError(f"{name!r} is no timm model.")
    state = read_state(path)
    defaults: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if cfg is not None:
        defaults = {k: v for k, v in cfg.to_dict().items() if v is not None}
    settings = defaults | {k: v for k, v in (preprocess or {}).items() if v is not None}
    head = settings.get("classifier")
    head = head[0] if isinstance(head, (list, tuple)) else head
    weight = state.get(f"{head}.weight")
    if weight is None or not 1 <= len(weight) <= _MAX_CLASSES:
        raise ModelError(f"{path} has no last layer {head}.weight: it is no classifier of {name}.")
    num_classes = len(weight)
    try:
        architecture = name.partition(".")[0]
        network = timm.create_model(
            architecture, pretrained=False, num_classes=num_classes, **(arguments or {})
        )
        load_tensors(network, state, "its file")
    except (*LOAD_ERRORS, ModelError) as error:
        raise ModelError(f"{path} cannot be loaded as {name}: {one_line(error)}") from error
    check_finite(path, network.state_dict())
    size = settings.get("input_size", (3, 224, 224))
    return Classifier(
        network,
        name=title or str(name),
        size_px=square(path, size[-2:]),
        mean=settings.get("mean", IMAGENET_MEAN),
        std=settings.get("std", IMAGENET_STD),
        interpolation=_interpolation(settings.get("interpolation", "bicubic")),
        num_classes=num_classes,
        labels=checked_labels(path, labels or _imagenet_labels(num_classes), num_classes),
    )


def _imagenet_labels(num_classes: int) -> list[str]:
    """Return ImageNet's labels where the number of classes is one of its subsets', else none."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return [] if subset is None else list(ImageNetInfo(subset).label_descriptions())


def _hugging_face(folder: Path, config: dict[str, Any], name: str) -> Classifier:
    import transformers

    classes = config.get("architectures") or [None]
    if classes[0] not in _HF_CLASSES:
        raise ModelError(
            f"{folder.name}: architecture {classes[0]!r} is not one of the classifiers that are "
            f"loaded ({', '.join(sorted(_HF_CLASSES))}), nor is it a timm folder."
        )
    try:
        network, report = getattr(transformers, classes[0]).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # and told of: ours is the one line
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder} cannot be loaded: {one_line(error)}") from error
    check_loaded(folder, network, report)
    preprocess = read_config(folder / "preprocessor_config.json")
    if abs(preprocess.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ModelError(f"{folder}: only images scaled to [0, 1] before normalising are known.")
    normalised = preprocess.get("do_normalize", True)
    labels = [network.config.id2label[i] for i in range(network.config.num_labels)]
    return Classifier(
        network,
        name=name,
        size_px=_hf_size(folder, preprocess),
        mean=preprocess["image_mean"] if normalised else (0.0, 0.0, 0.0),
        std=preprocess["image_std"] if normalised else (1.0, 1.0, 1.0),
        interpolation=_INTERPOLATIONS.get(preprocess.get("resample", 2), "bicubic"),
        num_classes=network.config.num_labels,
        labels=labels,
        multi_label=network.config.problem_type == "multi_label_classification",
    )


def _hf_size(folder: Path, preprocess: dict[str, Any]) -> int:
    """Return the side of what the network sees: the crop where it crops, else the resized."""
    cropped = preprocess.get("do_center_crop", False) and preprocess.get("crop_size")
    size = cropped or preprocess.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (edge, edge) if edge else (size.get("height"), size.get("width"))
    elif isinstance(size, int):
        size = (size, size)
    return square(folder, size)


def _from_wsdan(path: Path) -> Classifier:
    state = read_state(path)
    if not is_wsdan(state):
        raise ModelError(
            f"{path.name} has tensors {', '.join(sorted(state)[:4])}, ...: not a WS-DAN "
            "checkpoint. Write NAME@FILE with the timm model that the weights are of."
        )
    network, size_px, mean, std = build_wsdan(state, path)
    num_classes = len(state.get("fc_new.weight", state.get("fc.weight", ())))
    labels = checked_labels(path, labels_beside(path), num_classes)
    return Classifier(
        network,
        name=str(path),
        size_px=size_px,
        mean=mean,
        std=std,
        num_classes=num_classes,
        labels=labels,
    )


def _cached_weights(name: str) -> Path:
    import timm
    from huggingface_hub import try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    hub_id = getattr(cfg, "hf_hub_id", None)
    if not hub_id:
        raise ModelError(f"timm publishes no weights of {name}; write {name}@FILE.")
    hub_id = hub_id if not hub_id.endswith("/") else f"{hub_id}{name}"
    found = try_to_load_from_cache(hub_id, "model.safetensors")
    if not isinstance(found, str):
        raise ModelError(
            f"the weights of {name} have not been pulled; `hf download {hub_id}` puts them into "
            f"the cache (HF_HOME is honoured), or write {name}@FILE."
        )
    return Path(found)


def _interpolation(name: str) -> str:
    return name if name in ("bilinear", "bicubic") else "bicubic"
