"""The two encoders of a network: forward passes up to the layer that is read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _blocks, _deep_prompts, _projection
from clipadapt.models._text_tower import CausalTextTower
from clipadapt.tensor.devices import arithmetic, torch_dtype
from clipadapt.tensor.moves import placed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clipadapt.models import Layer, Tower


class Towers:
    """Image and text encoder of a network; frozen, in one dtype.

    ``fast`` means: positions and blocks whose result is never read are left out, which changes rounding only.
    """

    def __init__(self, net: Any, name: str, device: str, dtype: str) -> None:
        self.net = net
        self.name = name
        self.device = device
        self.dtype = dtype
        self._compiled: dict[tuple[Layer, bool], Callable[[torch.Tensor], torch.Tensor]] = {}

    def encode_image(self, pixels: torch.Tensor, layer: Layer, *, fast: bool) -> torch.Tensor:
        """Encode preprocessed images ``(n, 3, H, W)`` to float32 ``(n, D)``."""
        x = self._cast(pixels)
        if layer == "pre_projection":
            return self._before_projection(x, fast=fast).float()
        if layer == _projection.ATTENTION:
            return _projection.before_projection(self.net.visual, x).float()
        if layer.startswith(_blocks.PREFIX):
            for unit in self.units(fast=fast)[: int(layer.removeprefix(_blocks.PREFIX))]:
                x = unit.run(x)
            return x.float()
        if fast and _blocks.ends_early(self.net.visual):
            return self.encode_image_from(x, 0, layer, fast=fast)
        out: torch.Tensor = self.net.encode_image(x, normalize=False).float()
        return _at(layer, out)

    def units(self, *, fast: bool) -> tuple[_blocks.Unit, ...]:
        """Return the units of the image tower, see :mod:`clipadapt.models._blocks`."""
        return _blocks.units(self.net.visual, fast=fast)

    def encode_image_from(
        self, states: torch.Tensor, unit: int, layer: Layer, *, fast: bool
    ) -> torch.Tensor:
        """Run the units from ``unit`` on; float32 ``(n, D)``."""
        x = self._cast(states)
        for step in self.units(fast=fast)[unit:]:
            x = step.run(x)
        return _at(layer, x.float())

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        return placed(x, self.device).to(torch_dtype(self.dtype))

    def _before_projection(self, pixels: torch.Tensor, *, fast: bool) -> torch.Tensor:
        """Return the pooled features that the last projection reads."""
        visual = self.net.visual
        if isinstance(visual, VisionTransformer):
            x = pixels
            if fast and _blocks.ends_early(visual):
                for unit in self.units(fast=fast)[:-1]:
                    x = unit.run(x)
            else:
                x = visual.transformer(visual._embeds(x))
            out: torch.Tensor = visual._pool(x)[0]
            return out
        if isinstance(visual, TimmModel):
            if _blocks.projects_in_trunk(visual):
                return _blocks.before_head(visual.trunk, pixels)
            out = visual.trunk(pixels)
            # A trunk whose head pools by attention returns a feature map.
            return out if out.ndim == 2 else out.flatten(2).mean(-1)
        if isinstance(visual, ModifiedResNet):
            # Its projection is part of the attention pooling.
            return cast("torch.Tensor", visual(pixels))
        raise ModelError(f"a {type(visual).__name__} has no features before the projection")

    def compiled_image(self, layer: Layer, *, fast: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return :meth:`encode_image` compiled by torch for batches of one shape."""
        key = layer, fast
        if key not in self._compiled:
            compile_: Any = torch.compile  # its overloads leave out isolate_recompiles
            network = partial(self.encode_image, layer=layer, fast=fast)
            compiled = compile_(network, dynamic=False, isolate_recompiles=True)

            def run(pixels: torch.Tensor) -> torch.Tensor:
                from torch._dynamo.exc import TorchDynamoException
                from torch._inductor.exc import CppCompileError

                try:
                    return cast("torch.Tensor", compiled(pixels))
                except (TorchDynamoException, CppCompileError) as err:
                    lines = str(err).splitlines() or [type(err).__name__]
                    cause = next((line for line in lines if "error: " in line), lines[0])
                    raise ModelError(
                        f"torch cannot compile '{self.name}' here: {cause.strip()}",
                        hint="install a C++ compiler, or omit --set compile=on",
                    ) from err

            self._compiled[key] = run
        return self._compiled[key]

    def encode_text(self, tokens: torch.Tensor, layer: Layer, *, fast: bool) -> torch.Tensor:
        """Encode token ids ``(n, L)``, ``L <= context_length``, to float32 ``(n, D)``."""
        if layer == "pre_projection":
            raise ModelError(
                "text features before the projection are not available", hint="use layer 'output'"
            )
        there = placed(tokens, self.device)
        tower = CausalTextTower.of(self.net)
        if tower is None:
            out: torch.Tensor = self.net.encode_text(there, normalize=False)
        elif fast and tower.can_share():
            out = tower.with_shared(tower.tower.token_embedding(there), tokens, 0)
        elif tokens.shape[1] < tower.context_length:
            out = tower(there)
        else:
            out = self.net.encode_text(there, normalize=False)
        return _at(layer, out.float())

    def encode_token_embeddings(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        layer: Layer,
        shared: int,
        *,
        fast: bool,
    ) -> torch.Tensor:
        """Encode texts whose token embeddings ``(n, L, W)`` are given; ``tokens`` decide masks and pooling."""
        given = placed(embeddings, self.device)
        tower = CausalTextTower.of(self.net)
        if tower is not None and fast and tower.can_share():
            # After a shared beginning little padding is left.
            out = tower.with_shared(given, tokens, shared, packed=not shared)
            return _at(layer, out.float())

        def replace(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
            return given.to(output.dtype)

        handle = self.token_embedding.register_forward_hook(replace)
        try:
            return self.encode_text(tokens, layer, fast=fast)
        finally:
            handle.remove()

    def prompt_blocks(self, tower: Tower) -> tuple[int, int]:
        """Return the number of blocks of a tower that can take prompts, and the width of a prompt token.

        Raises:
            ModelError: If the tower cannot take prompts.
        """
        if tower == "image":
            found = _deep_prompts.image_blocks(self.net.visual)
            kind = _deep_prompts.kind_of(self.net.visual)
        else:
            blocks = _deep_prompts.text_blocks(self.net)
            found = None if blocks is None else (len(blocks), self._text_width())
            kind = _deep_prompts.kind_of(getattr(self.net, "text", self.net))
        if found is None:
            raise ModelError(
                f"the {tower} tower of '{self.name}' ({kind}) cannot take prompts, which are tokens of a plain "
                "transformer",
                hint="use a model whose image tower is a ViT and whose text tower is a transformer, such as "
                "ViT-B-16-quickgelu/openai",
            )
        return found

    def _text_width(self) -> int:
        return int(cast("torch.Tensor", self.token_embedding.weight).shape[1])

    def encode_image_with_prompts(
        self, states: torch.Tensor, prompts: Sequence[torch.Tensor], layer: Layer, *, fast: bool
    ) -> torch.Tensor:
        """Run the image tower with prompts from the input of its first block on; float32 ``(n, D)``."""
        x = self._cast(states)
        return _at(
            layer, _deep_prompts.encode_image(self.net.visual, x, prompts, fast=fast).float()
        )

    def encode_text_with_prompts(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        slots: torch.Tensor,
        prompts: Sequence[torch.Tensor],
        layer: Layer,
        shared: int,
        *,
        fast: bool,
    ) -> torch.Tensor:
        """Encode texts with ``prompts[0]`` at ``slots``, and ``prompts[i]`` there before block ``i``."""
        given = _deep_prompts.fill(placed(embeddings, self.device), slots, prompts[0])
        tower = CausalTextTower.of(self.net)
        if tower is not None and fast and tower.can_share():
            out = tower.with_shared(given, tokens, shared, slots, prompts)
            return _at(layer, out.float())
        with _deep_prompts.replaced(_deep_prompts.text_blocks(self.net) or [], slots, prompts):
            return self.encode_token_embeddings(given, tokens, layer, shared, fast=fast)

    @property
    def token_embedding(self) -> torch.nn.Module:
        """The token embedding layer of the text tower."""
        text = getattr(self.net, "text", self.net)
        inner = getattr(text, "transformer", None)
        if inner is not None and hasattr(inner, "get_input_embeddings"):
            return cast("torch.nn.Module", inner.get_input_embeddings())
        return cast("torch.nn.Module", text.token_embedding)

    def used_lengths(self, tokens: torch.Tensor, *, fast: bool) -> torch.Tensor:
        """Return how many leading positions of each row of ``(n, L)`` decide its feature; shape ``(n,)``."""
        whole = torch.full((len(tokens),), tokens.shape[1])
        if not fast:
            return whole
        if CausalTextTower.of(self.net) is not None:
            return tokens.argmax(dim=1) + 1
        # A Hugging Face tower has a config and masks the padding.
        config = getattr(getattr(self.net, "text", None), "config", None)
        if config is None or getattr(config, "pad_token_id", None) is None:
            return whole
        used = tokens != config.pad_token_id
        last = tokens.shape[1] - used.flip(1).int().argmax(dim=1)
        return torch.where(used.any(dim=1), last, 1)

    def arithmetic(self, tower: Tower, *, fast: bool, compiled: bool) -> Iterator[str]:
        """Yield everything besides weights and input that affects a feature numerically."""
        yield from arithmetic(self.device, self.dtype)
        if fast and self._skips(tower):
            yield "early"
        if tower == "image" and _blocks.projects_in_trunk(self.net.visual):
            yield "head in trunk"
        if tower == "image" and compiled:
            yield "compiled"

    def _skips(self, tower: Tower) -> bool:
        """Return whether a fast pass leaves out computation in this tower."""
        if tower == "image":
            return _blocks.ends_early(self.net.visual)
        text = CausalTextTower.of(self.net)
        return text is not None and text.can_share()


def _at(layer: Layer, projected: torch.Tensor) -> torch.Tensor:
    if layer == "projected":
        return projected
    if layer == "output":
        return F.normalize(projected, dim=-1)
    raise ModelError(f"unknown layer '{layer}'", hint="use output, projected or pre_projection")
