"""Versions of one photo with the score each deserves: improved, natural, and damaged ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from doodl.pocket.training.degrade import DEGRADATIONS, TONE, degrade
from doodl.pocket.training.improve import improve, natural_score

__all__ = ["Versions", "make_versions"]

# Damage weaker than this is not worth a word in a caption.
_SAYABLE = 0.35
# These are overdone improvements: a milder dose can be right for a dull photo.
_OVERDONE = ("harsh", "garish")
_LOWEST = 1.0


@dataclass(frozen=True)
class Versions:
    """V versions of P photos, version by version: image (V·P, 3, H, W), target (V·P,).

    damage[i] names the visible damage of image i, or is None. undamaged (V·P, 3, H, W) is image i
    before its damage; toned (V·P,) says where that damage is one of tone and colour alone.
    """

    image: Tensor
    target: Tensor
    damage: list[str | None]
    undamaged: Tensor
    toned: Tensor


def make_versions(
    photo: Tensor, names: tuple[str, ...], generator: torch.Generator, *, groups: int = 6
) -> Versions:
    """Four versions of each photo (P, 3, H, W) in [0, 1].

    They are: improved, as it is, mildly damaged, more damaged. The photos are dealt into groups;
    each group has its own kind of damage, a third of them a second kind on top.
    """
    count = len(photo)
    device = photo.device
    amount = (0.4 + 0.6 * torch.rand(count, generator=generator)).to(device)
    best = improve(photo, torch.ones_like(amount))
    natural = natural_score(photo, best)
    improved = photo.lerp(best, amount.view(-1, 1, 1, 1))
    improved_target = natural + amount * (
        natural_score(best).clamp_min(9.0).maximum(natural) - natural
    )

    from_improved = (torch.rand(count, generator=generator) < 0.5).to(device)
    severe = (0.05 + 0.95 * torch.rand(count, generator=generator) ** 1.3).to(device)
    mild = severe * (0.15 + 0.5 * torch.rand(count, generator=generator)).to(device)
    damaged: list[list[Tensor]] = [[], []]
    targets: list[list[Tensor]] = [[], []]
    damage: list[list[str | None]] = [[], []]
    bases: list[Tensor] = []
    toned: list[Tensor] = []
    for part in torch.arange(count).chunk(groups):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        name = _draw(names, generator)
        second = _draw(names, generator) if torch.rand((), generator=generator) < 0.33 else None
        start = improved if name in _OVERDONE or second in _OVERDONE else None
        mask = from_improved[rows]
        base = (
            improved[rows]
            if start is not None
            else torch.where(mask.view(-1, 1, 1, 1), improved[rows], photo[rows])
        )
        base_target = (
            improved_target[rows]
            if start is not None
            else torch.where(mask, improved_target[rows], natural[rows])
        )
        bases.append(base)
        smooth = name in TONE and (second is None or second in TONE)
        toned.append(torch.full((len(base),), smooth, device=device))
        seed = int(torch.randint(2**31, (), generator=generator))
        for k, severity in enumerate((mild[rows], severe[rows])):
            # Both doses draw the same tint, field or noise: only the severity differs.
            own = torch.Generator().manual_seed(seed)
            image = degrade(name, base, severity, own)
            cost = DEGRADATIONS[name].penalty * severity
            if second is not None:
                image = degrade(second, image, 0.5 * severity, own)
                other = DEGRADATIONS[second].penalty * 0.5 * severity
                cost = (cost**2 + other**2).sqrt()
            damaged[k].append(image)
            targets[k].append((base_target - cost).clamp_min(_LOWEST))
            damage[k] += [name if s > _SAYABLE else None for s in severity.tolist()]
    never = torch.zeros(2 * count, dtype=torch.bool, device=device)
    return Versions(
        torch.cat((improved, photo, *damaged[0], *damaged[1])),
        torch.cat((improved_target, natural, *targets[0], *targets[1])),
        [None] * (2 * count) + damage[0] + damage[1],
        torch.cat((improved, photo, *bases, *bases)),
        torch.cat((never, *toned, *toned)),
    )


def _draw(names: tuple[str, ...], generator: torch.Generator) -> str:
    return names[int(torch.randint(len(names), (), generator=generator))]
