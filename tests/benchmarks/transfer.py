"""The transfer against what else could carry a change to the full-resolution photo.

    python -m tests.benchmarks.transfer --photos FOLDER       # distance, halo, zero change
    python -m tests.benchmarks.transfer --photos FOLDER --pictures FOLDER      # to look at
    python -m tests.benchmarks.transfer --speed               # CPU seconds and peak memory

A photo is dulled at full resolution; the model's two images are the pocket autoencoder's view of
the dulled photo and of the clean one, so the change to carry is known: back to the clean photo.
Times are CPU time of one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from doodl.backbones import Backbone, load_backbone
from doodl.delivery.deliver import Delivery, deliver
from doodl.delivery.transfer import apply_transfer, apply_transfer_to_pixels, fit_transfer
from doodl.delivery.transfer.fit import (
    _gaussian_windows,
    _matmul,
    _outer,
    _ridge_inverse,
    _smoothing,
)
from doodl.delivery.transfer.guide import CHANNELS, guide_of, spline_weights
from doodl.images import Photo, decode_photo, model_view
from doodl.pocket import weights_dir
from doodl.pocket.training.degrade import degrade

WORKING_PX = 128
SEVERITY = 0.5
DAMAGE = ("dull", "under_exposed", "uneven_light", "vignetted", "washed_out", "cast")
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
Carry = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_residual(before: Tensor, after: Tensor, photo: Tensor) -> Tensor:
    return photo + F.interpolate(after - before, photo.shape[2:], mode="bicubic")


def first_form(before: Tensor, after: Tensor, photo: Tensor, eps: float = 1e-2) -> Tensor:
    """The transfer as it was at first: no term of place, a stronger ridge."""
    height, width = before.shape[2:]
    radius_px = max(min(height, width) / 16, 1.0)
    windows = [_gaussian_windows(n, radius_px, before.device) for n in (height, width)]
    smooth = [_smoothing(len(w), 1.0, before.device) for w in windows]
    guide, change = guide_of(before), after - before

    def means(image: Tensor) -> Tensor:
        rows, columns = (w.to(image.dtype) for w in windows)
        return rows @ (image @ columns.T)

    wide = guide.double()
    mean, frame_mean = means(wide), wide.mean((2, 3), keepdim=True)
    square = _outer(wide, wide)
    solve = _ridge_inverse(means(square) - _outer(mean, mean), eps)
    frame_square = square.mean((2, 3), keepdim=True) - _outer(frame_mean, frame_mean)
    moments = torch.cat([change, _outer(change, guide)], 1)
    local, frame = means(moments), moments.mean((2, 3), keepdim=True)
    mean, frame_mean = mean.float(), frame_mean.float()
    frame_slope = _matmul(
        frame[:, 3:] - _outer(frame[:, :3], frame_mean), _ridge_inverse(frame_square, eps / 8)
    )
    slope = _matmul(local[:, 3:] - _outer(local[:, :3], mean) + eps * frame_slope, solve)
    offset = local[:, :3] - (slope.unflatten(1, (3, -1)) * mean[:, None]).sum(2)
    grid = smooth[0] @ torch.cat([slope, offset], 1) @ smooth[1].T
    rows = spline_weights(photo.shape[2], grid.shape[2], grid.device)
    columns = spline_weights(photo.shape[3], grid.shape[3], grid.device)
    slope, offset = (rows @ (grid @ columns.T)).split((3 * CHANNELS, 3), dim=1)
    return photo + (slope.unflatten(1, (3, -1)) * guide_of(photo)[:, None]).sum(2) + offset


def transfer(before: Tensor, after: Tensor, photo: Tensor) -> Tensor:
    return apply_transfer(fit_transfer(before, after), photo)


def in_linear_light(before: Tensor, after: Tensor, photo: Tensor) -> Tensor:
    fitted = fit_transfer(_linear(before), _linear(after))
    return _coded(apply_transfer(fitted, _linear(photo)))


def _linear(image: Tensor) -> Tensor:
    value = ((image + 1) / 2).clamp(0, 1)
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) * 2 - 1


def _coded(image: Tensor) -> Tensor:
    value = ((image + 1) / 2).clamp(0, 1)
    return torch.where(
        value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055
    ).mul(2).sub(1)  # fmt: skip


CARRIES: dict[str, Carry] = {
    "plain residual": plain_residual,
    "first form": first_form,
    "transfer": transfer,
    "in linear light": in_linear_light,
}


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def _pixels(image: Tensor) -> np.ndarray:
    return ((image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()


class Model:
    """The pocket autoencoder: what the model makes of a photo without any change."""

    def __init__(self) -> None:
        self.backbone: Backbone = load_backbone(weights_dir() / "pipeline")

    def view(self, pixels: np.ndarray) -> Tensor:
        photo = Photo(pixels=pixels, format="PNG", mode="RGB")
        return model_view(photo, WORKING_PX, self.backbone.size_multiple)

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        return self.backbone.decode(self.backbone.encode(self.view(pixels))).clamp(-1, 1)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    total = sum(
        float(np.square(a[i : i + 256].astype(np.float32) - b[i : i + 256]).sum(dtype=np.float64))
        for i in range(0, len(a), 256)
    )
    return float(10 * np.log10(255**2 / max(total / a.size, 1e-9)))


def _load(path: Path, longer_px: int) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    if longer_px:
        image.thumbnail((longer_px, longer_px))
    return np.array(image)


@torch.no_grad()
def distances(model: Model, paths: Sequence[Path], longer_px: int) -> None:
    """Print the PSNR in dB to the clean original, by damage and way of carrying the change."""
    found: dict[str, dict[str, list[float]]] = {d: {} for d in DAMAGE}
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        clean = _load(path, longer_px)
        after = model(clean)
        for name in DAMAGE:
            image = degrade(name, (_tensor(clean) + 1) / 2, torch.tensor([SEVERITY]), generator)
            dulled = _pixels(image * 2 - 1)
            del image
            before = model(dulled)
            found[name].setdefault("as it was", []).append(psnr_db(dulled, clean))
            for way, carry in CARRIES.items():
                delivered = _pixels(carry(before, after, _tensor(dulled)))
                found[name].setdefault(way, []).append(psnr_db(delivered, clean))
        print(f"  {path.name} {clean.shape[1]}×{clean.shape[0]}", file=sys.stderr, flush=True)
    ways = ["as it was", *CARRIES]
    print(f"\nPSNR to the clean original, dB ({len(paths)} photos, severity {SEVERITY})")
    print(f"| damage | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(f'{np.mean(row[w]):.1f}' for w in ways)} |")
    means = {w: np.mean([v for row in found.values() for v in row[w]]) for w in ways}
    print(f"| mean | {' | '.join(f'{means[w]:.1f}' for w in ways)} |")


def darkened(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the photo with its bright parts a quarter darker, those parts, and strong edges."""
    from skimage.filters import threshold_otsu

    side = min(pixels.shape[:2])
    lightness = ndimage.gaussian_filter(pixels @ LUMA, side / 200)
    bright = lightness > threshold_otsu(lightness)
    bright = ndimage.binary_opening(bright, iterations=max(1, side // 100))
    wanted = np.where(bright[..., None], pixels * 0.75, pixels).astype(np.uint8)
    slope = ndimage.gaussian_gradient_magnitude(lightness, side / 200)
    border = bright ^ ndimage.binary_erosion(bright)
    return wanted, bright, border & (slope > np.quantile(slope, 0.9))


@torch.no_grad()
def pictures(model: Model, paths: Sequence[Path], folder: Path) -> None:
    """Write a strip a photo: part of it as it was, as wanted, and as each way delivers it.

    Above, the bright parts are to be a quarter darker; below, an under-exposed photo is to be as
    its original. The part shown lies around the longest of the strong edges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for path in paths:
        clean = _load(path, 1600)
        wanted, _, strong = darkened(clean)
        side = min(clean.shape[:2]) // 3
        share = ndimage.uniform_filter(strong.astype(np.float32), side)
        inside = tuple(slice(side // 2, n - side // 2) for n in share.shape)
        middle = np.unravel_index(share[inside].argmax(), share[inside].shape)
        part = tuple(slice(int(m), int(m) + side) for m in middle)
        light = (_tensor(clean) + 1) / 2
        dulled = degrade("under_exposed", light, torch.tensor([SEVERITY]), generator)
        rows = []
        for source, goal in ((clean, wanted), (_pixels(dulled * 2 - 1), clean)):
            before, after = model(source), model(goal)
            shown = [source, goal]
            shown += [_pixels(carry(before, after, _tensor(source))) for carry in CARRIES.values()]
            cut = [Image.fromarray(p[part]).resize((320, 320)) for p in shown]
            rows.append(np.concatenate([np.asarray(c) for c in cut], axis=1))
        Image.fromarray(np.concatenate(rows)).save(folder / f"{path.stem}.png")


@torch.no_grad()
def halos(model: Model, paths: Sequence[Path]) -> None:
    """Print how much the error beside strong edges differs from that farther off, same side.

    The wanted photo has its bright parts darkened by a quarter and its dark parts left. Errors
    are averaged by their distance from the strongest edges between the two, each side on its own,
    in bins of 0.25 % of the shorter side. The halo is the largest departure of such a mean, from
    0.25 to 4 % away, from the mean at 5 to 8 %: in levels, mean of both sides.
    """
    found: dict[str, list[float]] = {way: [] for way in CARRIES}
    for path in paths:
        pixels = _load(path, 1600)
        side = min(pixels.shape[:2])
        wanted, bright, strong = darkened(pixels)
        if strong.sum() < side:
            continue
        distance = ndimage.distance_transform_edt(~strong) / side
        off = (distance > 0.05) & (distance < 0.08)
        bins = [(distance > low) & (distance <= low + 0.0025) for low in np.arange(1, 16) * 0.0025]
        before, after = model(pixels), model(wanted)
        for way, carry in CARRIES.items():
            delivered = _pixels(carry(before, after, _tensor(pixels))).astype(np.float32)
            error = (delivered - wanted).mean(axis=2)
            sides = []
            for part in (bright, ~bright):
                profile = [error[part & b].mean() for b in bins if (part & b).sum() > side / 4]
                if profile and (off & part).any():
                    sides.append(np.abs(np.array(profile) - error[off & part].mean()).max())
            found[way].append(float(np.mean(sides)))
    count = len(found["transfer"])
    print(f"\nHalo beside strong edges, levels of 255 ({count} photos, change of 25 % of light)")
    for way, values in found.items():
        print(f"| {way} | {np.mean(values):.2f} |")


@torch.no_grad()
def zero_change(model: Model, paths: Sequence[Path], longer_px: int) -> None:
    """Print the PSNR of a delivered photo at zero change, and of `--deliver model`'s."""
    print("\nZero change, PSNR to the source, dB\n| photo | delivered | --deliver model |")
    for path in paths:
        data = path.read_bytes()
        if longer_px:
            import io

            buffer = io.BytesIO()
            Image.fromarray(_load(path, longer_px)).save(buffer, "JPEG", quality=95)
            data = buffer.getvalue()
        photo = decode_photo(data)
        image = model(photo.pixels)
        shown = []
        for delivery in (Delivery(), Delivery(deliver="model")):
            encoded, _ = deliver(photo, image, image.clone(), delivery, software="benchmark")
            shown.append(psnr_db(photo.pixels, decode_photo(encoded).pixels))
        print(f"| {path.name} | {shown[0]:.1f} | {shown[1]:.1f} |", flush=True)


def speed(megapixels: int, dtype: str) -> dict[str, float]:
    """Return CPU seconds and peak memory of the full-resolution pass, in this process."""
    before = torch.rand(1, 3, WORKING_PX, WORKING_PX * 3 // 2) * 2 - 1
    fitted = fit_transfer(before, before * 0.9 + 0.05)
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    pixels = np.zeros((height, height * 3 // 2, 3), dtype)
    pixels[:] = np.arange(pixels.shape[1])[None, :, None] % 251
    start = time.process_time()
    result = apply_transfer_to_pixels(fitted, pixels)
    seconds = time.process_time() - start
    assert result.shape == pixels.shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_gb": peak / 1e9, "pixels_gb": 2 * pixels.nbytes / 1e9}


def speeds(repeats: int) -> None:
    print("| MP | bits | CPU s, best of runs | peak memory, GB | of it the two photos, GB |")
    print("|---|---|---|---|---|")
    for megapixels in (12, 50, 100):
        for dtype in ("uint8", "uint16"):
            command = [sys.executable, __file__, "--one", str(megapixels), dtype]
            runs = [
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                for _ in range(repeats)
            ]
            best = min(runs, key=lambda run: run["seconds"])
            bits = 8 if dtype == "uint8" else 16
            print(
                f"| {megapixels} | {bits} | {best['seconds']:.1f} | {best['peak_gb']:.2f} | "
                f"{best['pixels_gb']:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs, best at full resolution")
    parser.add_argument("--longer-px", type=int, default=0, help="reduce them first; 0: do not")
    parser.add_argument("--pictures", type=Path, help="write what each way delivers here instead")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(speed(int(args.one[0]), args.one[1])))
        return
    if args.photos and args.pictures:
        pictures(Model(), sorted(args.photos.glob("*.jpg")), args.pictures)
    elif args.photos:
        model, paths = Model(), sorted(args.photos.glob("*.jpg"))
        halos(model, paths)
        zero_change(model, paths, args.longer_px)
        distances(model, paths, args.longer_px)
    if args.speed:
        speeds(args.repeats)


if __name__ == "__main__":
    main()
