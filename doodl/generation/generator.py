"""Pictures of a batch of prompts: sample, optimise the noise by the guides, encode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.backbones import Backbone
from doodl.backbones.denoiser import NoisePredictor
from doodl.engine.checkpoints import state_from_bytes
from doodl.engine.sampling import check_sampler, denoise_to, generate
from doodl.engine.stream import OnIteration
from doodl.errors import DoodlError, OptimisationError, RequestError
from doodl.generation.delivery import Delivery
from doodl.generation.judge import Judge
from doodl.generation.problem import GenerateProblem
from doodl.generation.requests import GenerateRequest, GenerateResult
from doodl.generation.safety import SafetyCheck
from doodl.guidance.guidance import BoundGuidance, Guidance
from doodl.guidance.spec import GuideSpec
from doodl.optimise import LatentState, optimise
from doodl.recipes.config import EditConfig
from doodl.schedule import Schedule

logger = logging.getLogger(__name__)

LoadGuides = Callable[[tuple[GuideSpec, ...]], Guidance]

_MAX_GUIDANCES = 4
"""Sets of guides whose networks are kept; a manifest may name another set in each row."""


@dataclass(frozen=True)
class _Start:
    """Where a group's pictures begin: the latents that are optimised, and their plain sample.

    Attributes:
        x, y: (B, C, h, w). generators: each picture's own, its noise drawn. images: (B, 3, H, W).
    """

    x: Tensor
    y: Tensor
    generators: list[torch.Generator]
    images: Tensor


class ImageGenerator:
    """The loaded models and the recipe; `generate` is the work on one batch of prompts.

    Args:
        backbone: the latent diffusion model.
        config: the preset.
        load_guides: gives the guidance of guide specs; asked once for each set of guides.
        judge: measures what the guides aim at by networks that gave no gradient; None: nobody.
        safety: the model's checker, or why there is none.
        image_format: of the files: PNG, JPEG or WEBP.
    Raises: ValueError if the sampler's steps or memory do not fit the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EditConfig,
        load_guides: LoadGuides,
        *,
        judge: Judge | None = None,
        safety: SafetyCheck | None = None,
        image_format: str = "PNG",
        software: str = "doodl-batch",
    ) -> None:
        self.backbone, self.config, self.judge = backbone, config, judge
        self._delivery = Delivery(
            backbone.name, safety or SafetyCheck(None, "off"), judge, image_format, software
        )
        self._load_guides = load_guides
        self._guidances: dict[tuple[GuideSpec, ...], Guidance] = {}
        if config.method != "doodl":
            raise ValueError(f"method {config.method} edits photos; pictures are made by doodl.")
        # Here and not at the first picture: no prompt is at fault for them.
        check_sampler(self.schedules()[1], config.sampler)

    def schedules(self, size_px: tuple[int, int] | None = None) -> tuple[Schedule, Schedule]:
        """Return all steps, and those at their end that are optimised through.

        Args:
            size_px: (height, width) of the pictures; None: the model's native size.
        """
        sampler = self.config.sampler
        whole = self.backbone.schedule(sampler.num_inference_steps, size_px=size_px)
        return whole, whole.from_step(len(whole) - (sampler.optimise_at or len(whole)))

    def check_size(self, width_px: int, height_px: int) -> None:
        """Raise RequestError unless the model can make pictures of this size."""
        multiple = self.backbone.size_multiple
        if width_px % multiple or height_px % multiple:
            fitting = "x".join(
                str(max(1, round(s / multiple)) * multiple) for s in (width_px, height_px)
            )
            raise RequestError(
                f"size {width_px}x{height_px} must be multiples of {multiple} px with this model; "
                f"try {fitting}."
            )
        try:
            self.backbone.latent_shape(height_px, width_px)
        except ValueError as error:  # too long for a model whose positions are counted
            raise RequestError(str(error)) from error

    def generate(
        self, requests: Sequence[GenerateRequest], *, on_iteration: OnIteration | None = None
    ) -> list[GenerateResult | DoodlError]:
        """Make pictures together and return their results in the order of the requests.

        Requests of one size, negative prompt and set of guides share batches; a picture does not
        depend on them. Where the result would be, a request that failed has its error:
        RequestError or ModelError if its guides cannot be used, OptimisationError if its numbers
        are not finite.
        """
        results: dict[int, GenerateResult | DoodlError] = {}
        for key in dict.fromkeys(_group_key(request) for request in requests):
            places = [i for i, request in enumerate(requests) if _group_key(request) == key]

            def report(index: int, state: LatentState, places: list[int] = places) -> None:
                if on_iteration is not None:
                    on_iteration(places[index], state)

            try:
                group = self._generate_group([requests[i] for i in places], report)
            except DoodlError as error:
                group = [error for _ in places]
            results.update(zip(places, group, strict=True))
        return [results[i] for i in range(len(requests))]

    def guidance(self, guides: tuple[GuideSpec, ...]) -> Guidance:
        """Return the guidance of these guides, its networks loaded once. Raises: ModelError."""
        found = self._guidances.pop(guides, None)
        if found is None:
            if len(self._guidances) >= _MAX_GUIDANCES:
                self._guidances.pop(next(iter(self._guidances)))
            found = self._load_guides(guides)
        self._guidances[guides] = found  # the newest last
        return found

    def _generate_group(
        self, requests: Sequence[GenerateRequest], on_iteration: OnIteration
    ) -> list[GenerateResult | DoodlError]:
        first = requests[0]
        self.check_size(first.width_px, first.height_px)
        predictor = self.backbone.predictor(
            [request.prompt for request in requests],
            negative_prompts=first.negative_prompt,
            guidance_scale=self.config.sampler.guidance_scale,
        )
        start = self._start(requests, predictor)
        results: list[GenerateResult | DoodlError] = [
            OptimisationError("the sampler left the finite numbers; try more steps or a smaller "
                              "guidance_scale.")
            for _ in requests
        ]  # fmt: skip
        finite = start.images.isfinite().all(1).all(1).all(1).tolist()
        places = [i for i, is_finite in enumerate(finite) if is_finite]
        if not first.guides:
            for i in places:
                results[i] = self._delivery.plain(requests[i], start.images[i : i + 1])
            return results
        bound, places = self._bound(requests, places, start.images, results)
        if bound is None:
            return results
        states = [_start_or_resume(requests[i], start, i) for i in places]
        problem = GenerateProblem(
            self.backbone,
            predictor.keep(places),
            self.schedules((first.height_px, first.width_px))[1],
            bound,
            self.config.sampler,
            self.config.crops,
        )

        def report(running: Sequence[LatentState]) -> None:
            for state in running:
                on_iteration(places[states.index(state)], state)

        optimise(states, problem, self.config.optimiser, on_iteration=report)
        images = self._render_best(problem, states)
        unguided = start.images[places]
        values = (_by_photo(bound.values(unguided)), _by_photo(bound.values(images)))
        for at, i in enumerate(places):
            results[i] = self._delivery.guided(
                requests[i], unguided[at : at + 1], images[at : at + 1], states[at],
                (values[0][at], values[1][at]),
            )  # fmt: skip
        return results

    @torch.no_grad()
    def _start(self, requests: Sequence[GenerateRequest], predictor: NoisePredictor) -> _Start:
        """Draw each request's noise, denoise the plain steps, and sample to the end from there."""
        backbone, sampler = self.backbone, self.config.sampler
        size = requests[0].height_px, requests[0].width_px
        # On the CPU whatever the device, so that a seed makes the same picture everywhere.
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        noise = backbone.init_noise(generators, *size)
        whole, optimised = self.schedules(size)
        x, y = denoise_to(predictor, noise, whole, len(whole) - len(optimised), sampler)
        x_0, _ = generate(predictor, x, y, optimised, sampler)
        return _Start(x, y, generators, backbone.decode(x_0))

    def _bound(
        self,
        requests: Sequence[GenerateRequest],
        places: list[int],
        images: Tensor,
        results: list[GenerateResult | DoodlError],
    ) -> tuple[BoundGuidance | None, list[int]]:
        """Return the guides bound to the requests they fit, and which those are.

        A request they do not fit (a class nobody knows, no prompt for a text guide) gets its error.
        The fidelity guide measures from the unguided samples `images`.
        """
        guidance = self.guidance(requests[0].guides)
        images = images.clamp(-1, 1)  # as a file shows them, and as the guides see what follows
        fitting = []
        for i in places:
            try:
                guidance.bind([requests[i].guide_row], images[i : i + 1])
                fitting.append(i)
            except DoodlError as error:
                results[i] = error
            except ValueError as error:
                results[i] = RequestError(str(error))
        if not fitting:
            return None, []
        rows = [requests[i].guide_row for i in fitting]
        return guidance.bind(rows, images[fitting]), fitting

    @torch.no_grad()
    def _render_best(self, problem: GenerateProblem, states: Sequence[LatentState]) -> Tensor:
        x = torch.stack([state.best_x for state in states])
        y = torch.stack([state.best_y for state in states])
        return problem.decode(problem.generate(x, y)[0])


def _group_key(request: GenerateRequest) -> tuple[object, ...]:
    return request.height_px, request.width_px, request.negative_prompt, request.guides


def _by_photo(values: dict[str, Tensor]) -> list[dict[str, float]]:
    """Return {guide: value} of each picture, from {guide: (B,)}."""
    columns = {name: value.detach().float().tolist() for name, value in values.items()}
    count = max((len(column) for column in columns.values()), default=0)
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _start_or_resume(request: GenerateRequest, start: _Start, place: int) -> LatentState:
    """Return the state of the request's checkpoint, or of its own noise if none fits."""
    if request.checkpoint is not None:
        try:
            return state_from_bytes(request.checkpoint, like=start.x[place])
        except OptimisationError as error:
            logger.warning("%s The picture starts again.", error)
    state = LatentState.start(start.x[place], start.y[place], request.seed)
    state.generator = start.generators[place]  # goes on after the noise, and repeats none of it
    return state
