"""CLIP's tokenizer without a model folder: its merges come with open_clip."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from doodl.errors import ModelError

_NUM_MERGES = 49152 - 256 - 2
_START, _END = "<|startoftext|>", "<|endoftext|>"


def _byte_symbols() -> list[str]:
    """Return a printable character for each byte, in the order of CLIP's vocabulary.

    Source: the byte-level BPE of GPT-2: printable bytes stand for themselves and come first.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def clip_tokenizer(pad_token: str = _END) -> Any:
    """Return the tokenizer of CLIP's text encoders.

    Args:
        pad_token: the end of the text for OpenAI's towers; `!` (token 0) for OpenCLIP's.
    Raises: ModelError if open_clip's file of merges is not there.
    """
    from transformers import CLIPTokenizer

    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec is not None else None
    try:
        merges_file = Path((folders or [""])[0]) / "bpe_simple_vocab_16e6.txt.gz"
        lines = gzip.decompress(merges_file.read_bytes()).decode().split("\n")
    except OSError as error:
        raise ModelError(f"open_clip's tokenizer file cannot be read: {error}") from error
    merges = lines[1 : 1 + _NUM_MERGES]
    symbols = _byte_symbols()
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    pieces += ["".join(merge.split()) for merge in merges] + [_START, _END]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token)
