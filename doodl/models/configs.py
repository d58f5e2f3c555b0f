"""Configs of models from outside: read as data, refused where they ask to run code or to fetch.

One reader for every loader. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doodl.errors import ModelError

CONFIG_FILES = (
    "model_index.json", "config.json", "scheduler_config.json", "preprocessor_config.json",
    "tokenizer_config.json", "open_clip_config.json", "generation_config.json",
    "adapter_config.json",
)  # fmt: skip
"""The files of a model's folder that the libraries act on."""

# Switches and tables that name code outside the installed libraries.
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines"})
# Keys under which timm, open_clip, PEFT and transformers are told where weights lie.
_SOURCE_KEYS = frozenset(
    {
        "hf_hub_id", "hf_hub_filename", "hf_model_name", "use_pretrained_backbone",
        "base_model_name_or_path",
    }
)  # fmt: skip
# Words too common to mean a source anywhere but in timm's own table.
_TIMM_SOURCE_KEYS = ("pretrained_cfg.url", "pretrained_cfg.file", "pretrained_cfg.source")
# Fetched only if they are an address: published tokenizers name their own files in them.
_FILE_KEYS = frozenset(
    {
        "vocab_file", "merges_file", "tokenizer_file", "fast_tokenizer_files", "spm_file",
        "special_tokens_map_file", "added_tokens_file", "hf_tokenizer_name",
    }
)  # fmt: skip
_ATTENTION_KEYS = frozenset(
    {"attn_implementation", "_attn_implementation", "_attn_implementation_internal"}
)
_ADDRESSES = ("hf-hub:", "local-dir:")
# What a person calls classes, tokens and the like: names there mean nothing to the libraries.
_WORDS = frozenset(
    {"id2label", "label2id", "label_names", "label_descriptions", "added_tokens_decoder"}
)
_LIBRARIES = frozenset({"", "diffusers", "transformers", "doodl.pocket.autoencoder"})
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")


def read_config(path: Path) -> dict[str, Any]:
    """Return the object of a config file.

    Raises: ModelError if it is not there, no JSON object, or asks to run code or to fetch.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        demand = next(_demands(path, value), None) if isinstance(value, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    if demand is not None:
        raise ModelError(
            f"{path}: its {demand}; models are taken as they lie, and run no code of their own. "
            "Take a copy of the model without that."
        )
    return value


def check_configs(folder: Path) -> None:
    """Raise ModelError if a config in a model's folder asks to run code or to fetch."""
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            read_config(folder / name)


def _demands(path: Path, config: dict[str, Any]) -> Iterator[str]:
    """Yield of each key that asks to run code or to fetch what it asks for, the key first."""
    for key, value in _items(config):
        name = key.rpartition(".")[2]
        if value in (None, False, "", [], {}):
            continue
        said = _short(value)
        if name in _CODE_KEYS:
            yield f"{key} asks to run code of its own, {said}"
        elif name in _ATTENTION_KEYS and any("/" in text for text in _texts(value)):
            yield f"{key} asks to run the code of {said}"
        elif name == "quantization_config":
            yield f"{key} asks to be unpacked by code that is not loaded here, {said}"
        elif name == "_class_name" and not _is_known_class(value):
            yield f"{key} is {said}, which is no class of diffusers"
        elif _fetches(key, value):
            yield f"{key} asks to fetch {said}"
        elif name == "hf_tokenizer_name" and not _has_tokenizer(path.parent):
            yield f"{key} asks to fetch {said}, as the folder holds no tokenizer"
    if path.name == "model_index.json":
        for name, entry in config.items():
            library = _library(entry)
            if library not in _LIBRARIES and not _is_pipeline_module(library):
                yield f"{name} is a {entry[1]} of the module {_short(library)}"


def _fetches(key: str, value: Any) -> bool:
    name = key.rpartition(".")[2]
    if name in _SOURCE_KEYS or key.endswith(_TIMM_SOURCE_KEYS):
        return True
    if name == "timm_model_name":
        return any(mark in str(value) for mark in ":/")
    return name in _FILE_KEYS and any(map(_is_address, _texts(value)))


def _items(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of a config and of the objects in it."""
    for name, value in config.items():
        if name in _WORDS:
            continue
        yield f"{prefix}{name}", value
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _items(inner, f"{prefix}{name}.")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _is_address(text: str) -> bool:
    return "://" in text or text.startswith(_ADDRESSES)


def _has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(name), None) is not None for name in _TOKENIZER_FILES)


def _is_known_class(name: Any) -> bool:
    # Named lists: nothing is imported on a config's word.
    import diffusers

    return name is None or name == "PatchAutoencoder" or name in dir(diffusers)


def _library(entry: Any) -> str:
    """Return the library of an entry `[library, class]` of model_index.json; "" if it is none."""
    pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    return entry[0] if pair else ""


def _is_pipeline_module(name: str) -> bool:
    """Return whether diffusers has pipelines of this name: old indexes name their classes so."""
    found = importlib.util.find_spec("diffusers")
    places = (found.submodule_search_locations or []) if found is not None else []
    return name.isidentifier() and any(Path(place, "pipelines", name).is_dir() for place in places)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
