"""The files of an open_clip folder that a tower is made of. Imports no torch."""

from __future__ import annotations

from pathlib import Path

TOWER_CONFIG = "open_clip_config.json"

# As open_clip looks for them, and in its order.
_PREFERRED = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors",
    "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
_SUFFIXES = (".safetensors", ".bin", ".pth")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def tower_weights(folder: Path) -> Path | None:
    """Return the weights file that open_clip takes of a folder; None if there is none."""
    for name in _PREFERRED:
        if (folder / name).is_file():
            return folder / name
    others = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES]
    return min(others, key=lambda path: path.suffix != ".safetensors", default=None)


def tower_files(folder: Path) -> list[Path]:
    """Return the files of a folder that its tower is loaded from, whatever else lies there."""
    weights = tower_weights(folder)
    named = [folder / TOWER_CONFIG, *(folder / name for name in _TOKENIZER)]
    return [path for path in named if path.is_file()] + ([] if weights is None else [weights])
