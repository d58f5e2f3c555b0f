"""The edit of a batch of photos: encode, invert, optimise, transfer to full size, score."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from doodl.backbones import Backbone, load_backbone
from doodl.delivery.deliver import deliver
from doodl.delivery.mask import view_of_mask
from doodl.editing.guard import Guard, measure_fidelity, verdict
from doodl.editing.methods import Slot, Way, adapted, check_method, way_of
from doodl.editing.objective import EnhanceProblem
from doodl.editing.requests import EditRequest, EditResult
from doodl.editing.start import Start, WarmStart, warm_starts
from doodl.engine.checkpoints import state_from_bytes
from doodl.engine.sampling import RoundTrip, check_sampler
from doodl.engine.stream import Arrival, OnIteration, Room, edit_continuously
from doodl.errors import DoodlError, InversionError, OptimisationError
from doodl.guidance.guidance import Guidance, load_guidance
from doodl.guidance.spec import parse_guides
from doodl.images import Photo, decode_photo, model_view
from doodl.models.hub import find_model
from doodl.optimise import LatentState
from doodl.recipes.config import EditConfig
from doodl.scores import AestheticScorer, ScorerEnsemble, load_scorer

logger = logging.getLogger(__name__)


class PhotoEditor:
    """The loaded models and the recipe; `edit` is the work on one batch of photos.

    Args:
        backbone: the latent diffusion model.
        guide: the scorer that gives the gradient, and the scores before and after.
        judge: the scorer that gives none, and decides with the guide whether to deliver.
        config: the preset.
        guidance: what gives the gradient in the guide's place, if more than that guides.
    Raises: ValueError if the sampler's steps or memory do not fit the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        guide: AestheticScorer | ScorerEnsemble,
        judge: AestheticScorer | ScorerEnsemble,
        config: EditConfig,
        *,
        software: str = "doodl-batch",
        guidance: Guidance | None = None,
    ) -> None:
        check_method(backbone, config)
        backbone, config = adapted(backbone, config)
        self.backbone, self.guide, self.judge = backbone, guide, judge
        self.config, self.software = config, software
        self.guidance = guidance or Guidance.of_scorer(guide)
        self.guard = Guard(guide, judge, self.guidance, config, self.view)
        if config.sampler.optimise_at is not None:
            raise ValueError(
                "sampler.optimise_at is for images generated from noise; a photo is inverted part "
                "of the way with sampler.depth."
            )
        # Here and not at the first photo: no photo is at fault for them.
        sampler = config.sampler
        check_sampler(backbone.schedule(sampler.num_inference_steps, sampler.depth), sampler)

    def view(self, photo: Photo) -> Tensor:
        """Return the photo at the model's size, (1, 3, H, W) in [-1, 1]."""
        multiple = self.backbone.size_multiple
        return model_view(photo, self.config.working_px, multiple).to(self.backbone.device)

    def edit(
        self, requests: Sequence[EditRequest], *, on_iteration: OnIteration | None = None
    ) -> list[EditResult | DoodlError]:
        """Edit photos together and return their results in the order of the requests.

        Photos of the same frame size share batches; a photo's result does not depend on them.
        Where the result would be, a photo that failed has its error: InversionError or
        OptimisationError if its numbers are not finite.

        Raises: ValueError if a request lacks what a guide needs: words, exemplars, a class.
        """
        results: dict[int, EditResult | DoodlError] = {}
        overlap = len(requests) > 1
        for place, result in self.stream(
            requests, len(requests), on_iteration=on_iteration, overlap=overlap
        ):
            if not isinstance(result, (EditResult, DoodlError)):
                raise result
            results[place] = result
        return [results[i] for i in range(len(requests))]

    def stream(
        self,
        requests: Iterable[EditRequest],
        room: Room,
        *,
        on_iteration: OnIteration | None = None,
        overlap: bool = True,
    ) -> Iterator[tuple[int, EditResult | Exception]]:
        """Yield (place of the request, its result or error) as photos are done, `room` at a time.

        As `edit`, for more photos than there is room for: one that is done leaves, and the next
        request is asked for and takes its place at the next iteration. It is delivered (carried to
        full size, encoded, scored) in a thread while the others go on, unless not to `overlap`;
        whatever error that meets is its own.
        """
        yield from edit_continuously(self, requests, room, on_iteration, overlap=overlap)

    def begin(self, arrivals: Sequence[Arrival]) -> list[Slot | DoodlError]:
        """Return photos of one frame size at their start; InversionError for one that has none."""
        requests = [arrival.request for arrival in arrivals]
        views = torch.cat([arrival.view for arrival in arrivals])
        way = self._way(requests, views)
        trip, previews = way.begin(self.backbone.encode(views))
        begun: list[Slot | DoodlError] = [
            InversionError("the inversion left the finite numbers; try more steps.")
            for _ in requests
        ]
        places = [i for i, error in enumerate(trip.errors) if math.isfinite(error)]
        if not places:
            return begun
        with torch.no_grad():
            bases = self.backbone.decode(trip.x_0[places])
        starts = self._starts(
            [requests[i] for i in places], [arrivals[i].view for i in places], bases
        )
        for i, base, start in zip(places, bases.split(1), starts, strict=True):
            x, y, error = trip.x[i], trip.y[i], trip.errors[i]
            if start is not None:
                x, y, error = start.x, start.y, max(error, start.inversion_error)
            begun[i] = Slot(
                place=arrivals[i].place,
                request=requests[i],
                view=arrivals[i].view,
                base=base,
                state=_start_or_resume(requests[i], x, y),
                inversion_error=error if way.inverts else None,
                previews=None if previews is None else previews[:, i],
                start=start,
            )
        return begun

    def _starts(
        self, requests: Sequence[EditRequest], views: Sequence[Tensor], bases: Tensor
    ) -> list[Start | None]:
        def invert(places: Sequence[int], stretched: Tensor) -> RoundTrip:
            way = self._way([requests[i] for i in places], stretched)
            return way.begin(self.backbone.encode(stretched))[0]

        choices = [
            WarmStart.of(
                self.guidance,
                self.config,
                request,
                view,
                _protected_views([request.protect], view),
            )
            for request, view in zip(requests, views, strict=True)
        ]
        grey = [request.photo.grey for request in requests]
        return warm_starts(self.backbone, choices, bases, grey, invert)

    def together(self, slots: Sequence[Slot]) -> tuple[Way, EnhanceProblem]:
        """Return the method and the objective of photos that share a batch."""
        requests = [slot.request for slot in slots]
        views = torch.cat([slot.view for slot in slots])
        way = self._way(requests, views)
        problem = EnhanceProblem.of(
            self.backbone,
            way.predictor,
            self.guidance,
            self.config,
            views=views,
            bases=torch.cat([slot.base for slot in slots]),
            starts=torch.cat(
                [slot.view if slot.start is None else slot.start.view for slot in slots]
            ),
            aims=[request.aim for request in requests],
            grey=[request.photo.grey for request in requests],
            rows=[request.row for request in requests],
            deliveries=[request.delivery for request in requests],
            protect=_protected_views([request.protect for request in requests], views),
        )
        return way, problem

    def _way(self, requests: Sequence[EditRequest], views: Tensor) -> Way:
        sampler, (height, width) = self.config.sampler, views.shape[-2:]
        predictor = self.backbone.predictor(
            [request.prompt for request in requests], guidance_scale=sampler.guidance_scale
        )
        schedule = self.backbone.schedule(
            sampler.num_inference_steps, sampler.depth, size_px=(height, width)
        )
        return way_of(self.backbone, self.config, predictor, schedule)

    def finished(self, slot: Slot, image: Tensor) -> EditResult | DoodlError:
        """Return the result of a photo that is done: its error if the image cannot be delivered."""
        try:
            return self._deliver(slot, image)
        except DoodlError as error:  # its batch has been paid for
            return error

    def _deliver(self, slot: Slot, image: Tensor) -> EditResult:
        request, base, state = slot.request, slot.base, slot.state
        if math.isinf(state.best_value):
            raise OptimisationError("the optimisation left the finite numbers at once.")
        photo = request.photo
        moved = state.best_iteration > 0 or slot.start is not None
        share = self.guard.pleasing_share(request, base, image) if moved else 1.0
        delivery = replace(
            request.delivery,
            strength=share * request.strength,
            locality=self.config.transfer_locality,
        )
        encoded, change = deliver(
            photo, base, image, delivery, software=self.software, protect=request.protect
        )
        # The source was accepted at this size, so its edit is.
        delivered = decode_photo(encoded, max_pixels=photo.width_px * photo.height_px)
        before, after = self.scores(photo), self.scores(delivered)
        fidelity = measure_fidelity(photo, delivered)
        objection = self.guard.objection(request, delivered, before, after)
        judged = verdict(
            state, objection, fidelity, self.config.max_change, warm=slot.start is not None
        )
        return EditResult(
            encoded=encoded,
            status=judged.status,
            score_before=before[0],
            score_after=after[0],
            judge_before=before[1],
            judge_after=after[1],
            psnr_db=fidelity.psnr_db,
            ssim=fidelity.ssim,
            inversion_error=slot.inversion_error,
            num_optim_steps=state.iteration,
            stop_reason=str(state.stop_reason),
            loss_curve=list(state.loss_curve),
            change=change,
            delta_e=fidelity.delta_e,
            rejection=judged.reason,
            protected=None if request.protect is None else float(request.protect.mean() / 255),
            delivered_strength=delivery.strength,
        )

    def scores(self, photo: Photo) -> tuple[float, float]:
        """Return (guide score, judge score) of a photo as it stands."""
        return self.guard.scores(photo)


def _protected_views(masks: Sequence[np.ndarray | None], views: Tensor) -> Tensor | None:
    """Return the masks at the model's size, (B, 1, h, w); None if no photo has one."""
    if all(mask is None for mask in masks):
        return None
    height, width = views.shape[-2:]
    nothing = torch.zeros(1, 1, height, width)
    small = [nothing if mask is None else view_of_mask(mask, height, width) for mask in masks]
    return torch.cat(small).to(views)


def _start_or_resume(request: EditRequest, x: Tensor, y: Tensor) -> LatentState:
    """Return the state of the request's checkpoint, or of the pair's start if none fits."""
    if request.checkpoint is not None:
        try:
            return state_from_bytes(request.checkpoint, like=x)
        except OptimisationError as error:
            logger.warning("%s The photo starts again.", error)
    return LatentState.start(x, y, request.seed)


def load_editor(
    model: str,
    config: EditConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    software: str = "doodl-batch",
    guides: Sequence[str] = (),
) -> PhotoEditor:
    """Load everything an edit needs.

    Args:
        model: `pocket`, or the path of a diffusers pipeline folder.
        guides: in place of the config's, if there are any. Where neither names one, the pocket
            model's aesthetic score guides; it also gives the scores before and after where no
            aesthetic guide does.
    Raises: ModelError if the model or a guide's network is not there.
    """
    if guides:
        config = replace(config, guides=tuple(guides))
    folder = find_model(model)
    backbone = load_backbone(folder, name=model, device=device, dtype=dtype)
    guidance = None
    if config.guides:
        # In float32 whatever the backbone runs in: a half-precision gradient of pixels underflows.
        guidance = load_guidance(parse_guides(config.guides), model=model, device=device)
    guide = guidance.scorer if guidance is not None else None
    return PhotoEditor(
        backbone,
        load_scorer("pocket", device=device) if guide is None else guide,
        load_scorer("pocket-judge", device=device),
        config,
        software=software,
        guidance=guidance,
    )
