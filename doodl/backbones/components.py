"""One component of a pipeline folder: which classes may be loaded, from which files, and whole."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from doodl.errors import ModelError
from doodl.models.configs import check_configs, read_config
from doodl.models.hub import COMPONENTS, WEIGHTS
from doodl.models.weights import check_loaded, one_line

logger = logging.getLogger(__name__)

# model_index.json comes from outside: only these classes are ever imported on its word.
_NETWORKS = {
    "UNet2DConditionModel": "diffusers",
    "SD3Transformer2DModel": "diffusers",
    "FluxTransformer2DModel": "diffusers",
}
_AUTOENCODERS = {
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "PatchAutoencoder": "doodl.pocket.autoencoder",
}
_TEXT_ENCODERS = {
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "T5EncoderModel": "transformers",
}
_SAFETY_CHECKERS = {
    "StableDiffusionSafetyChecker": "diffusers.pipelines.stable_diffusion.safety_checker",
}
# Of these the configs and the loaders are transformers'.
_TRANSFORMERS = (*_TEXT_ENCODERS, *_SAFETY_CHECKERS)
_TOKENIZERS = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)
_LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError,
    SafetensorError,
)  # fmt: skip


def check_pipeline_configs(folder: Path) -> None:
    """Raise ModelError if a config of a pipeline folder or of a part asks to run code or to fetch.

    Asked of all before any is loaded.
    """
    for place in (folder, *(folder / name for name in COMPONENTS)):
        check_configs(place)


def component_class(folder: Path, index: dict[str, Any], name: str) -> str | None:
    """Return the class that model_index.json names for a component; None if it has none."""
    entry = index.get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
        return None
    allowed = _allowed(name)
    if entry[1] not in allowed:
        raise ModelError(
            f"{folder.name}: {name} is a {entry[1]}; this version loads "
            f"{', '.join(sorted(allowed))}."
        )
    return entry[1]


def _allowed(name: str) -> dict[str, str]:
    if name == "vae":
        return _AUTOENCODERS
    if name == "safety_checker":
        return _SAFETY_CHECKERS
    return _TEXT_ENCODERS if name.startswith("text_encoder") else _NETWORKS


def load_component(
    folder: Path, name: str, class_name: str, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return one network of a pipeline folder, frozen; on `meta` its shapes alone.

    Raises: ModelError if its files are absent, damaged, not safetensors or not the whole network.
    """
    cls = getattr(importlib.import_module(_allowed(name)[class_name]), class_name)
    library = "transformers" if class_name in _TRANSFORMERS else "diffusers"
    path = folder / name
    check_configs(path)
    try:
        if device.type == "meta":
            model = _skeleton(cls, path, library, dtype)
        else:
            with _no_progress_bars():
                model = _with_weights(cls, path, library, dtype)
    except _LOAD_ERRORS as error:
        raise ModelError(f"{path} cannot be loaded: {one_line(error)}") from error
    return model.eval().requires_grad_(False)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing on the terminal: who calls us says what is going on."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _skeleton(cls: Any, path: Path, library: str, dtype: torch.dtype) -> Any:
    if library == "transformers":
        config = cls.config_class.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            return cls(config).to(dtype)
    with torch.device("meta"):
        return cls.from_config(cls.load_config(path, local_files_only=True)).to(dtype)


def _with_weights(cls: Any, path: Path, library: str, dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {"dtype" if _takes_dtype(library) else "torch_dtype": dtype}
    if library == "transformers":
        # A config may name attention code on the hub; ours is what comes with torch.
        options["attn_implementation"] = (
            "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
        )
    else:
        # Without the optional accelerate package, diffusers warns at each load unless told so.
        options["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    model, found = cls.from_pretrained(
        path,
        variant="fp16" if takes_fp16_files(path, dtype) else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    check_loaded(path, model, found)
    if found["unexpected_keys"]:
        logger.info("%s holds %d tensors of no use", path, len(found["unexpected_keys"]))
    if library != "transformers":
        # diffusers keeps the file's dtype if the first tensor it meets has it already (SD3's).
        torch.nn.Module.to(model, dtype)
    return model


def _takes_dtype(library: str) -> bool:
    """Return whether the library's loader calls it `dtype`; older ones say `torch_dtype`."""
    if library != "transformers":
        return False
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5


def weight_files(path: Path, *, fp16: bool) -> list[Path]:
    """Return a component's safetensors files, of the fp16 variant or of the plain one."""
    if not path.is_dir():
        return []
    matches = [(file, WEIGHTS.fullmatch(file.name)) for file in sorted(path.iterdir())]
    return [file for file, match in matches if match and (match["fp16"] is not None) == fp16]


def takes_fp16_files(path: Path, dtype: torch.dtype) -> bool:
    """Return whether the fp16 variant's files are to be read: asked for, or all there is."""
    if not weight_files(path, fp16=True):
        return False
    return dtype == torch.float16 or not weight_files(path, fp16=False)


def load_tokenizer(path: Path) -> Any:
    """Return a tokenizer of a known class, no code of the folder's own being run.

    Raises: ModelError if it is absent, damaged or of another class.
    """
    from transformers import AutoTokenizer

    check_configs(path)
    name = read_config(path / "tokenizer_config.json").get("tokenizer_class", "CLIPTokenizer")
    if name not in _TOKENIZERS:
        raise ModelError(f"{path} is a {name}; this version loads {', '.join(_TOKENIZERS)}.")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises nothing narrower
        raise ModelError(f"{path} cannot be loaded: {one_line(error)}") from error
