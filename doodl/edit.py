"""The edit of a batch of photos: encode, invert, optimise, transfer to full size, score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from doodl.backbones import Backbone, load_backbone
from doodl.checkpoints import state_from_bytes
from doodl.config import EditConfig
from doodl.edict import generate, invert
from doodl.errors import InversionError, ModelError, OptimisationError
from doodl.fidelity import psnr_db, ssim
from doodl.images import Photo, decode_photo, encode_photo, into_photo_space, model_view
from doodl.objective import Aim, EnhanceProblem
from doodl.optimise import LatentState, optimise
from doodl.pocket import weights_dir
from doodl.scores import AestheticScorer, load_scorer
from doodl.transfer import TransferFit, apply_transfer_to_pixels


@dataclass(frozen=True)
class EditRequest:
    """One photo to edit.

    Attributes:
        photo: the decoded source.
        aim: up, down or a target score.
        seed: of the photo's own random generator.
        prompt: what the denoiser is told the photo shows; empty leaves it to the noise.
        strength: share of the change that is delivered, in [0, 1].
        checkpoint: bytes of an interrupted optimisation of this very request, to go on from.
    """

    photo: Photo
    aim: Aim
    seed: int
    prompt: str = ""
    strength: float = 1.0
    checkpoint: bytes | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength (={self.strength}) must be in [0, 1].")


@dataclass
class EditResult:
    """What became of one photo. Scores are of the file as encoded, not of the model's frame.

    Attributes:
        encoded: the edited photo's file bytes; there whatever the status says.
        status: ok | rejected | skipped.
        inversion_error: RMS of the latents' round trip over the RMS of the latents.
        loss_curve: loss of each rendered iterate.
    """

    encoded: bytes
    status: str
    score_before: float
    score_after: float
    judge_before: float
    judge_after: float
    psnr_db: float
    ssim: float
    inversion_error: float
    num_optim_steps: int
    stop_reason: str
    loss_curve: list[float]


OnIteration = Callable[[int, LatentState], None]
"""Called with the request's place in the batch and its state, after each iteration."""


class PhotoEditor:
    """The loaded models and the recipe; `edit` is the work on one batch of photos.

    Args:
        backbone: the latent diffusion model.
        guide: the scorer that gives the gradient.
        judge: the scorer that gives none, and decides with the guide whether to deliver.
        config: the preset.
    """

    def __init__(
        self,
        backbone: Backbone,
        guide: AestheticScorer,
        judge: AestheticScorer,
        config: EditConfig,
        *,
        software: str = "doodl-batch",
    ) -> None:
        self.backbone, self.guide, self.judge = backbone, guide, judge
        self.config, self.software = config, software

    def view(self, photo: Photo) -> Tensor:
        """Return the photo at the model's size, (1, 3, H, W) in [-1, 1]."""
        multiple = self.backbone.size_multiple
        return model_view(photo, self.config.working_px, multiple).to(self.backbone.device)

    def edit(
        self, requests: Sequence[EditRequest], *, on_iteration: OnIteration | None = None
    ) -> list[EditResult]:
        """Edit photos together and return their results in the order of the requests.

        Photos of the same frame size share batches; a photo's result does not depend on them.
        Raises: InversionError, OptimisationError if any photo's numbers are not finite; edit
            one by one to learn which.
        """
        views = [self.view(request.photo) for request in requests]
        results: dict[int, EditResult] = {}
        for shape in dict.fromkeys(view.shape for view in views):
            places = [i for i, view in enumerate(views) if view.shape == shape]
            group = self._edit_group(
                [requests[i] for i in places],
                torch.cat([views[i] for i in places]),
                _at_places(on_iteration, places),
            )
            results.update(zip(places, group, strict=True))
        return [results[i] for i in range(len(requests))]

    def _edit_group(
        self,
        requests: Sequence[EditRequest],
        views: Tensor,
        on_iteration: OnIteration | None,
    ) -> list[EditResult]:
        latents = self.backbone.encode(views)
        predictor = self.backbone.predictor(
            [request.prompt for request in requests],
            guidance_scale=self.config.sampler.guidance_scale,
        )
        with torch.no_grad():
            bases = self.backbone.decode(latents)
        problem = EnhanceProblem.of(
            self.backbone,
            predictor,
            self.guide,
            self.config,
            views=views,
            bases=bases,
            aims=[request.aim for request in requests],
            grey=[request.photo.grey for request in requests],
        )
        x, y, errors = self._invert(problem, latents)
        states = [
            state_from_bytes(request.checkpoint, device=self.backbone.device)
            if request.checkpoint is not None
            else LatentState.start(x[i], y[i], request.seed)
            for i, request in enumerate(requests)
        ]

        def report(running: Sequence[LatentState]) -> None:
            if on_iteration is not None:
                for state in running:
                    on_iteration(states.index(state), state)

        optimise(states, problem, self.config.optimiser, on_iteration=report)
        images = self._render_best(problem, states)
        return [
            self._deliver(request, bases[i : i + 1], images[i : i + 1], states[i], errors[i])
            for i, request in enumerate(requests)
        ]

    @torch.no_grad()
    def _invert(
        self, problem: EnhanceProblem, latents: Tensor
    ) -> tuple[Tensor, Tensor, list[float]]:
        """Return the noise pair and each photo's relative RMS error of the way there and back."""
        p = self.config.sampler.p
        x, y = invert(problem.predictor, latents, latents, problem.schedule, mix_weight=p)
        x_0, _ = generate(problem.predictor, x, y, problem.schedule, mix_weight=p)
        rms = latents.square().mean((1, 2, 3)).sqrt()
        errors = ((x_0 - latents).square().mean((1, 2, 3)).sqrt() / rms).tolist()
        if not all(error == error for error in errors):
            raise InversionError("the inversion left the finite numbers; try more steps.")
        return x, y, errors

    @torch.no_grad()
    def _render_best(self, problem: EnhanceProblem, states: Sequence[LatentState]) -> Tensor:
        if any(state.stop_reason == "diverged" and state.best_iteration == 0 for state in states):
            raise OptimisationError("the optimisation left the finite numbers at once.")
        x = torch.stack([state.best_x for state in states])
        y = torch.stack([state.best_y for state in states])
        return problem.decode(problem.generate(x, y)[0])

    def _deliver(
        self,
        request: EditRequest,
        base: Tensor,
        image: Tensor,
        state: LatentState,
        inversion_error: float,
    ) -> EditResult:
        photo = request.photo
        # The pixels to deliver are in the photo's own colour space, so the change is fitted there.
        fit = TransferFit(into_photo_space(photo, base), grey=photo.grey)
        transfer = fit.fit(into_photo_space(photo, image)).detach()
        pixels = apply_transfer_to_pixels(transfer, photo.pixels, strength=request.strength)
        encoded = encode_photo(photo, pixels, software=self.software)
        delivered = decode_photo(encoded)
        before, after = self.scores(photo), self.scores(delivered)
        improved = [request.aim.improved(b, a) for b, a in zip(before, after, strict=True)]
        if state.best_iteration == 0:
            status = "skipped" if state.stop_reason == "good_enough" else "rejected"
        else:
            status = "ok" if all(improved) else "rejected"
        return EditResult(
            encoded=encoded,
            status=status,
            score_before=before[0],
            score_after=after[0],
            judge_before=before[1],
            judge_after=after[1],
            psnr_db=psnr_db(photo.pixels, delivered.pixels),
            ssim=ssim(photo.pixels, delivered.pixels),
            inversion_error=inversion_error,
            num_optim_steps=state.iteration,
            stop_reason=str(state.stop_reason),
            loss_curve=list(state.loss_curve),
        )

    @torch.no_grad()
    def scores(self, photo: Photo) -> tuple[float, float]:
        """Return (guide score, judge score) of a photo as it stands."""
        view = self.view(photo)
        return float(self.guide(view)), float(self.judge(view))


def _at_places(on_iteration: OnIteration | None, places: list[int]) -> OnIteration | None:
    """Return `on_iteration` for a group whose photos have these places in the whole batch."""
    if on_iteration is None:
        return None
    return lambda index, state: on_iteration(places[index], state)


def load_editor(
    model: str,
    config: EditConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    software: str = "doodl-batch",
) -> PhotoEditor:
    """Load everything an edit needs.

    Args:
        model: `pocket`, or the path of a diffusers pipeline folder.
    Raises: ModelError if the model is not there.
    """
    folder = pipeline_folder(model)
    backbone = load_backbone(folder, name=model, device=device, dtype=dtype)
    return PhotoEditor(
        backbone,
        load_scorer("pocket", device=device),
        load_scorer("pocket-judge", device=device),
        config,
        software=software,
    )


def pipeline_folder(model: str) -> Path:
    """Return the diffusers pipeline folder of `pocket` or of a path.

    Raises: ModelError if it is neither.
    """
    folder = weights_dir() / "pipeline" if model == "pocket" else Path(model)
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"model {model!r} is neither `pocket` nor a diffusers pipeline folder "
            "(one with a model_index.json)."
        )
    return folder
