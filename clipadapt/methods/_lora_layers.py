"""The layers of a CLIP that get low-rank updates, and the names of their parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from clipadapt.core.api.errors import ConfigError, ModelError, did_you_mean
from clipadapt.methods._images import unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipadapt.models import AdapterTunable, Tower


def short_name(name: str) -> str:
    """Shorten the name of a PEFT parameter to ``LAYER.A``, ``LAYER.B`` or ``LAYER.magnitude``."""
    layer, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
    kinds = {"A": "A", "B": "B", "magnitude_vector": "magnitude"}
    return f"{layer}.{kinds[rest.partition('.')[0]]}"


def targets_of(
    model: AdapterTunable,
    encoder: Literal["image", "text", "both"],
    asked: Sequence[str],
    blocks: int | None,
) -> tuple[list[str], int]:
    """Return the names of the layers that get adapters, and the index of the first adapted unit of the image tower.

    Args:
        model: The model.
        encoder: Towers with adapters.
        asked: Roles of their layers; ``auto`` is those of the attention, if there is one.
        blocks: Number of units, or blocks, at the end of each tower; None for all.

    Raises:
        ModelError: If a tower has no layer of a role.
        ConfigError: If a tower has fewer than ``blocks`` blocks.
    """
    names: list[str] = []
    units = model.image_units()
    first = len(units)
    towers: tuple[Tower, ...] = ("image", "text") if encoder == "both" else (encoder,)
    for tower in towers:
        offered = model.adapter_targets(tower)
        auto = ("q", "k", "v") if "q" in offered else ("pointwise",)
        roles = [r for role in asked for r in (auto if role == "auto" else (role,))]
        for role in roles:
            if role not in offered:
                known = ", ".join(offered) or "none"
                raise ModelError(
                    f"the {tower} tower of '{model.name}' has no layer with the role '{role}'"
                    f"{did_you_mean(role, list(offered)) or ';'} it has: {known}",
                    hint=f"set method.roles=[{', '.join(offered) or role}] or method.encoder="
                    f"{'text' if tower == 'image' else 'image'}",
                )
        found = [name for role in dict.fromkeys(roles) for name in offered[role]]
        place = (
            {name: unit_of(units, name) for name in found} if tower == "image" else _block_of(found)
        )
        there = len(units) if tower == "image" else max(place.values()) + 1
        if blocks is not None and blocks > there:
            raise ConfigError(
                f"method.blocks is {blocks}; the {tower} tower of '{model.name}' has {there}",
                hint=f"choose a value from 1 to {there}, or leave it out to adapt all",
            )
        found = [name for name in found if place[name] >= there - (blocks or there)]
        if not found:
            raise ModelError(
                f"the last {blocks} units of the {tower} tower of '{model.name}' have no layer with the "
                f"roles {', '.join(roles)}",
                hint="increase method.blocks, or leave it out",
            )
        if tower == "image":
            first = min(place[name] for name in found)
        names += found
    return names, first


def _block_of(names: list[str]) -> dict[str, int]:
    """Return the index of each text layer's block: the first number in the layer's name."""
    return {n: next(int(part) for part in n.split(".") if part.isdigit()) for n in names}
