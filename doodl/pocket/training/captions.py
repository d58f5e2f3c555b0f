"""Captions of training photos, and the small tokenizer that reads them."""

import random
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from doodl.pocket.training.degrade import DEGRADATIONS

__all__ = ["FLOWERS", "caption", "load_tokenizer", "train_tokenizer"]

CONTEXT_LENGTH = 24
VOCABULARY = 1500

# The data set's folder names, as a caption says them: one of a kind, and many.
FLOWERS = {
    "daisy": ("a daisy", "daisies"),
    "dandelion": ("a dandelion", "dandelions"),
    "roses": ("a rose", "roses"),
    "sunflowers": ("a sunflower", "sunflowers"),
    "tulips": ("a tulip", "tulips"),
}
_GOOD_WORDS = ("", "", "", "beautiful", "clear", "vivid")
_EXTRA_WORDS = (
    "the and in on with at under over beside bright soft light sunny garden field meadow "
    "sky grass leaves petals flower flowers blossom red yellow white pink orange purple blue green "
    "brown black close up macro summer spring morning evening high quality professional "
    "photograph picture image painting drawing art good bad ugly best detailed sharp colourful "
    "colorful natural people person man woman child dog cat bird house tree water sea mountain"
)


def subject_of(label: str, rng: random.Random) -> str:
    """How a caption names the subject of a label ("" becomes a scene)."""
    if not label:
        return rng.choice(("a scene", "something"))
    if label in FLOWERS:
        return rng.choice(FLOWERS[label])
    name = label.lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(label: str, rng: random.Random, damage: str | None = None) -> str:
    """One caption: "a photo of tulips", "a hazy photo of a rose".

    Args:
        damage: a name in DEGRADATIONS for a visibly damaged photo.
    """
    subject = subject_of(label, rng)
    word = rng.choice(DEGRADATIONS[damage].words if damage else _GOOD_WORDS)
    if not word:
        return f"a photo of {subject}"
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word} photo of {subject}"


def train_tokenizer(labels: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the captions' words, saved to `folder`.

    Any text tokenises, since every byte is in the vocabulary. The end token has the highest id
    (CLIP pools the text at the highest id); padding is 0.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    rng = random.Random(0)
    names = sorted(set(labels))
    corpus = [caption(name, rng) for name in names for _ in range(2)]
    corpus += [caption(name, rng, d) for d in DEGRADATIONS for name in (*FLOWERS, "")] * 4
    corpus += [form for forms in FLOWERS.values() for form in forms] * 20
    corpus += [_EXTRA_WORDS] * 20

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<|pad|>", "<|startoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    ends = {t: tokenizer.token_to_id(t) for t in ("<|startoftext|>", "<|endoftext|>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=list(ends.items())
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return fast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
