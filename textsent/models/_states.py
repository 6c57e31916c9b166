"""Hidden states of an encoder: forward passes that stop at the layer that is read."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from clipadapt.tensor.devices import torch_dtype
from clipadapt.tensor.moves import placed
from clipadapt.tensor.weights import WeightsHash
from textsent.models._configurations import LAYER_LISTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


class Network:
    """An encoder with its copy in the dtype that it computes in.

    Attributes:
        module: The weights as they are stored, in float32.
    """

    def __init__(self, module: PreTrainedModel, device: str, dtype: str) -> None:
        self.module = module
        self.device = device
        self.dtype = dtype
        self._hash = WeightsHash()
        self._cast: dict[str, Any] = {}  # weights hash -> the encoder in ``dtype``; one entry

    @property
    def weights_sha256(self) -> str:
        """sha256 over name, shape, dtype and bytes of every tensor as it is now."""
        return self._hash.of(self.module.state_dict().items())

    def in_dtype(self) -> Any:
        """Return the encoder in ``dtype``; cast again if its weights have changed."""
        if self.dtype == "fp32":
            return self.module
        now = self.weights_sha256
        if now not in self._cast:
            self._cast.clear()
            self._cast[now] = copy.deepcopy(cast("Any", self.module)).to(torch_dtype(self.dtype))
        return self._cast[now]

    def states(
        self, net: Any, ids: torch.Tensor, mask: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of a layer and the mask on the device of the network.

        Args:
            net: What :meth:`in_dtype` returned.
            ids: Padded token ids, shape ``(n, L)``.
            mask: Attention mask, shape ``(n, L)``.
            layer: 0 (the embeddings) to the number of layers.

        Returns:
            States ``(n, L, D)`` and mask ``(n, L)``.
        """
        ids, mask = placed(ids, self.device), placed(mask, self.device)
        with torch.inference_mode():
            return _run(partial(net, input_ids=ids, attention_mask=mask), net, layer), mask


class _ReachedError(Exception):
    """Raised by a hook to stop a forward pass at the layer that is read."""


def _run(forward: Callable[..., Any], net: Any, layer: int) -> torch.Tensor:
    """Return the states of a layer, shape ``(n, L, D)``; the layers above it are not run, if they can be found."""
    n_layers = int(net.config.num_hidden_layers)
    if layer == n_layers:
        return cast("torch.Tensor", forward().last_hidden_state)
    layers = layer_list(net, n_layers)
    if layers is None:
        return cast("torch.Tensor", forward(output_hidden_states=True).hidden_states[layer])
    seen: list[torch.Tensor] = []

    def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    # The input of the next layer is the state asked for.
    hook = layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(_ReachedError):
            forward()
    finally:
        hook.remove()
    return seen[0]


def layer_list(net: Any, n_layers: int) -> torch.nn.ModuleList | None:
    """Return the layers of an encoder, or None if they are not where the known architectures keep them."""
    for path in LAYER_LISTS:
        try:
            found = net.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, torch.nn.ModuleList) and len(found) == n_layers:
            return found
    return None
