"""What networks that gave no gradient say of a picture: was it made as asked?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from doodl.errors import DoodlError
from doodl.evaluation.guided.spec import Item
from doodl.scores import AestheticScorer, load_scorer

_TEMPERATURE = 100.0
"""CLIP's own at the end of its training, for the probabilities of a zero-shot classifier."""


class Measure:
    """One scorer's tower and head, asked about pictures.

    Args:
        name: as `load_scorer` takes it.
        labels: the classes that a zero-shot classifier chooses among, in the task `classes`.
    Raises: ModelError if it is not to be had, DoodlError for an ensemble, which has no one tower.
    """

    def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
        scorer = load_scorer(name)
        if not isinstance(scorer, AestheticScorer):
            raise DoodlError(f"measure {name} is an ensemble; name one of its scorers.")
        self.scorer, self.labels = scorer, tuple(labels)
        self._texts: dict[str, Tensor] = {}
        self._subjects: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, task: str, item: Item, image: Tensor, subject: Tensor | None
    ) -> dict[str, float | None]:
        """Return what the image (1, 3, H, W) in [-1, 1] comes to.

        `aim`: what the task asks for: the cosine to the prompt (text) or to the subject
        (personalize), the class's probability among all (classes), the score (aesthetic).
        `right`: whether the class is the likeliest. `prompt`: cosine to the prompt. `score`.
        """
        embedding = self.scorer.tower(image)
        prompt = float((embedding * self._text(item.prompt)).sum())
        score = float(self.scorer.head(embedding))
        right = None
        if task == "classes":
            texts = torch.cat([self._text(f"a photo of {label}") for label in self.labels])
            chances = (_TEMPERATURE * embedding @ texts.T).softmax(-1)[0]
            place = self.labels.index(str(item.label))
            aim, right = float(chances[place]), float(chances.argmax() == place)
        elif task == "personalize":
            assert subject is not None
            aim = float((embedding * self._subject(item.name, subject)).sum())
        else:
            aim = prompt if task == "text" else score
        return {"aim": aim, "right": right, "prompt": prompt, "score": score}

    def _text(self, text: str) -> Tensor:
        if text not in self._texts:
            self._texts[text] = self.scorer.tower.embed_texts([text])
        return self._texts[text]

    def _subject(self, name: str, image: Tensor) -> Tensor:
        if name not in self._subjects:
            self._subjects[name] = self.scorer.tower(image[None])
        return self._subjects[name]
