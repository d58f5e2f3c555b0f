"""Photos to noise and back: what an edit does inside itself, as a result of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.backbones import Backbone, load_backbone
from doodl.editing.latent_files import LatentPair, latents_from_bytes, latents_to_bytes
from doodl.engine.sampling import check_sampler, generate, round_trip
from doodl.errors import DoodlError, InversionError, LatentsError
from doodl.generation.pictures import encode_picture, pixels_of, shown_name
from doodl.images import Photo, model_view
from doodl.measures.fidelity import psnr_db, ssim
from doodl.models.hub import find_model
from doodl.recipes.config import EditConfig


@dataclass(frozen=True)
class InvertRequest:
    """One photo to invert, and what the denoiser is told it shows."""

    photo: Photo
    prompt: str = ""


@dataclass
class InvertResult:
    """A photo's noise and what comes back of it, at the model's own size.

    Attributes:
        latents: the bytes of a latents file (`doodl.editing.latent_files`).
        encoded: the file of the photo made again from the noise.
        inversion_error: RMS of the pair's round trip over the RMS of the latents.
        psnr_db, ssim: the photo made again against the photo at the model's size.
        autoencoder_psnr_db: the autoencoder alone against it: what psnr_db can reach.
    """

    latents: bytes
    encoded: bytes
    width_px: int
    height_px: int
    inversion_error: float
    psnr_db: float
    ssim: float
    autoencoder_psnr_db: float


@dataclass
class RestoreResult:
    """A photo made of a latents file."""

    encoded: bytes
    width_px: int
    height_px: int
    prompt: str


class PhotoInverter:
    """The loaded model and its sampler.

    Raises: ValueError if the sampler's steps do not fit the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EditConfig,
        *,
        image_format: str = "PNG",
        software: str = "doodl-batch",
    ) -> None:
        self.backbone, self.config = backbone, config
        self.image_format, self.software = image_format, software
        sampler = config.sampler
        check_sampler(backbone.schedule(sampler.num_inference_steps, sampler.depth), sampler)

    def invert(self, requests: Sequence[InvertRequest]) -> list[InvertResult | DoodlError]:
        """Invert photos, those of one frame size together; results in the requests' order.

        Where the result would be, a photo that failed has its error: InversionError if its
        numbers are not finite.
        """
        multiple = self.backbone.size_multiple
        views = [model_view(r.photo, self.config.working_px, multiple) for r in requests]
        results: dict[int, InvertResult | DoodlError] = {}
        for shape in dict.fromkeys(view.shape for view in views):
            places = [i for i, view in enumerate(views) if view.shape == shape]
            together = torch.cat([views[i] for i in places]).to(self.backbone.device)
            group = self._invert_group([requests[i] for i in places], together)
            results.update(zip(places, group, strict=True))
        return [results[i] for i in range(len(requests))]

    @torch.no_grad()
    def _invert_group(
        self, requests: Sequence[InvertRequest], views: Tensor
    ) -> list[InvertResult | DoodlError]:
        sampler, backbone = self.config.sampler, self.backbone
        height_px, width_px = views.shape[-2:]
        schedule = backbone.schedule(
            sampler.num_inference_steps, sampler.depth, size_px=(height_px, width_px)
        )
        predictor = backbone.predictor(
            [request.prompt for request in requests], guidance_scale=sampler.guidance_scale
        )
        latents = backbone.encode(views)
        trip = round_trip(predictor, latents, schedule, sampler)
        plain, images = backbone.decode(latents), backbone.decode(trip.x_0)
        results: list[InvertResult | DoodlError] = []
        for i, request in enumerate(requests):
            if not math.isfinite(trip.errors[i]):
                results.append(
                    InversionError("the inversion left the finite numbers; try more steps.")
                )
                continue
            source, again = pixels_of(views[i]), pixels_of(images[i])
            height, width = source.shape[:2]
            pair = LatentPair(
                x=trip.x[i],
                y=trip.y[i],
                model=shown_name(backbone.name),
                model_revision=backbone.revision,
                num_inference_steps=sampler.num_inference_steps,
                depth=sampler.depth,
                mix_weight=sampler.p,
                guidance_scale=sampler.guidance_scale,
                prompt=request.prompt,
                width_px=width,
                height_px=height,
                sampler=sampler.kind,
            )
            results.append(
                InvertResult(
                    latents=latents_to_bytes(pair),
                    encoded=self._encoded(images[i]),
                    width_px=width,
                    height_px=height,
                    inversion_error=trip.errors[i],
                    psnr_db=psnr_db(source, again),
                    ssim=ssim(source, again),
                    autoencoder_psnr_db=psnr_db(source, pixels_of(plain[i])),
                )
            )
        return results

    def restore(self, files: Sequence[bytes]) -> list[RestoreResult | DoodlError]:
        """Return the photos of latents files, one by one, each by the sampler it was made with.

        Where the result would be, a file that is none, or another model's, has its LatentsError.
        """
        results: list[RestoreResult | DoodlError] = []
        for data in files:
            try:
                results.append(self._restore(latents_from_bytes(data)))
            except DoodlError as error:
                results.append(error)
        return results

    @torch.no_grad()
    def _restore(self, pair: LatentPair) -> RestoreResult:
        backbone = self.backbone
        if pair.model_revision != backbone.revision:
            raise LatentsError(
                f"the file was made with model {pair.model} {pair.model_revision}; "
                f"{shown_name(backbone.name)} here is {backbone.revision}."
            )
        multiple, factor = backbone.size_multiple, backbone.latent_factor
        shape = (backbone.latent_channels, pair.height_px // factor, pair.width_px // factor)
        fits = pair.width_px % multiple == pair.height_px % multiple == 0
        if not fits or tuple(pair.x.shape) != shape:
            raise LatentsError(
                f"latents {tuple(pair.x.shape)} do not fit a frame of "
                f"{pair.width_px}x{pair.height_px} px; want {shape}."
            )
        try:
            size_px = (pair.height_px, pair.width_px)
            schedule = backbone.schedule(pair.num_inference_steps, pair.depth, size_px=size_px)
            check_sampler(schedule, pair.sampler_config)
        except ValueError as error:
            raise LatentsError(f"the file's sampler does not fit the model: {error}") from error
        predictor = backbone.predictor([pair.prompt], guidance_scale=pair.guidance_scale)
        x, y = (half[None].to(backbone.device) for half in (pair.x, pair.y))
        x_0, _ = generate(predictor, x, y, schedule, pair.sampler_config)
        image = backbone.decode(x_0)
        if not image.isfinite().all():
            raise LatentsError("the photo of these latents left the finite numbers.")
        return RestoreResult(self._encoded(image[0]), pair.width_px, pair.height_px, pair.prompt)

    def _encoded(self, image: Tensor) -> bytes:
        note = f"made again from its noise by model {shown_name(self.backbone.name)}"
        return encode_picture(
            image, self.image_format, software=self.software, note=note, made=False
        )


def load_inverter(
    model: str,
    config: EditConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    image_format: str = "PNG",
    software: str = "doodl-batch",
) -> PhotoInverter:
    """Load the model of an inversion: `pocket`, or the path of a diffusers pipeline folder.

    Raises: ModelError if the model is not there.
    """
    backbone = load_backbone(find_model(model), name=model, device=device, dtype=dtype)
    return PhotoInverter(backbone, config, image_format=image_format, software=software)
