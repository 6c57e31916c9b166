"""One adapter over open_clip's ``CLIP`` and ``CustomTextCLIP``: build, cast, encode."""

from __future__ import annotations

from clipadapt.models import _lean_imports  # isort: skip  before open_clip

import copy
import hashlib
import json
import warnings
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Self, cast

import open_clip
import torch
import torch.nn.functional as F
import xxhash
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import VisionTransformer
from torchvision.transforms import Compose, Resize

from clipadapt.core.api.data import digest
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.features import Space
from clipadapt.core.files import hardware, identity
from clipadapt.core.files import tokenizers as vocabulary
from clipadapt.models import (
    PortableCode,
    _attention,
    _augment,
    _blocks,
    _checkpoints,
    _encode,
    _prompts,
    _snippet,
    _sources,
)
from clipadapt.models._text_tower import OwnText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.model import ModelIdentity
    from clipadapt.models import Layer, PromptPosition, Tower

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM_SEED: Final = 20210226
DECODE_VERSION: Final = 1
"""Raised when pixels change for the same file."""
LIBRARIES: Final = {
    "image": ("torch", "torchvision", "timm", "open_clip_torch", "pillow"),
    "text": ("torch", "open_clip_torch", "transformers", "tokenizers", "ftfy", "regex"),
}
"""Packages whose release may change a feature's bits, by tower."""
IMAGE_BATCH: Final = 32
TEXT_BATCH: Final = 64
SMALLEST_CROP: Final = 0.08


# ---------------------------------------------------------------- build


def build(source: _sources.Source, shown: str) -> torch.nn.Module:
    """Build the network in float32 on the CPU, with its weights.

    Without a checkpoint the weights are random, the same at every call; nothing pretrained is fetched.

    Raises:
        ModelError: If architecture and weights do not fit, or a text tower's config cannot be had.
    """
    cfg = copy.deepcopy(source.model_cfg)
    if "multimodal_cfg" in cfg:
        raise ModelError(
            f"'{shown}' is a CoCa model", hint="take a CLIP or CustomTextCLIP architecture"
        )
    text_cfg = cfg["text_cfg"]
    custom = bool(cfg.pop("custom_text", False)) or "hf_model_name" in text_cfg
    if cfg["vision_cfg"].get("timm_model_name"):
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if text_cfg.get("hf_model_name"):
        text_cfg |= {"hf_model_pretrained": False, "hf_model_name": str(source.tower)}
    make: Callable[[], torch.nn.Module] = partial(CustomTextCLIP if custom else CLIP, **cfg)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(RANDOM_SEED)
        with _lean_imports.without_compiler():  # a text tower's class may be imported only now
            module: Any = _made(make, shown)
    module.float().eval().requires_grad_(False)
    if source.checkpoint is not None:
        _load_weights(module, source, shown)
    preprocess = merge_preprocess_dict(PreprocessCfg(), source.preprocess_cfg)
    preprocess["size"] = module.visual.image_size
    set_model_preprocess_cfg(module, preprocess)
    _freeze_batch_norm(module)
    return cast("torch.nn.Module", module)


def _made(make: Callable[[], torch.nn.Module], shown: str) -> torch.nn.Module:
    try:
        return make()
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as err:
        raise ModelError(
            f"open_clip cannot build '{shown}': {type(err).__name__}: {err}",
            hint=f"the config is not one of open_clip {open_clip.__version__}",
        ) from err


def _load_weights(module: Any, source: _sources.Source, shown: str) -> None:
    path = source.checkpoint
    assert path is not None
    state = _checkpoints.read(path)
    try:
        state = _checkpoints.for_module(state, module)
        module.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, ValueError, AssertionError, AttributeError, IndexError) as err:
        raise ModelError(
            f"the weights '{path}' do not fit '{source.arch or shown}': {_misfit(module, state, err)}",
            hint="name the architecture that the weights were saved from",
        ) from err
    for name, weights in module.named_parameters():
        if name in state and not state[name].is_floating_point():
            raise ModelError(
                f"the weights '{path}' are quantised: tensor '{name}' is {state[name].dtype}",
                hint="save them in float32 or float16",
            )
        if not torch.isfinite(weights).all():
            raise ModelError(
                f"the weights '{path}' hold NaN or infinite values: tensor '{name}'",
                hint="the training that saved them diverged, or they overflowed float16: take an earlier checkpoint",
            )


def _misfit(module: torch.nn.Module, state: Mapping[str, torch.Tensor], err: BaseException) -> str:
    """Name the first tensor whose shape differs, or that is missing or left over."""
    got = {k: tuple(v.shape) for k, v in state.items()}
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    for name, shape in expected.items():
        if name in got and got[name] != shape:
            return f"tensor '{name}' has shape {got[name]}, expected {shape}"
    lacking = [n for n in expected if n not in got]
    if lacking:
        name = lacking[0]
        return f"tensor '{name}' of shape {expected[name]} is missing ({len(lacking)} of {len(expected)} are)"
    over = [n for n in got if n not in expected]
    if over:
        return f"tensor '{over[0]}' of shape {got[over[0]]} has no place ({len(over)} have none)"
    return str(err).strip().splitlines()[0]


@cache
def _frozen_class(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    def train(self: torch.nn.Module, mode: bool = True) -> torch.nn.Module:  # noqa: ARG001
        return kind.train(self, False)

    return type(f"Frozen{kind.__name__}", (kind,), {"train": train})


def _freeze_batch_norm(module: Any) -> None:
    """Let no later ``train()`` move the statistics of a BatchNorm, of this module or a copy of it."""
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            layer: Any = child
            layer.__class__ = _frozen_class(cast("Any", type(layer)))


def cast_weights(module: Any, device: str, dtype: str) -> torch.nn.Module:
    """Move to the device and cast once; logit scale and bias stay float32.

    Raises:
        ModelError: If the device does not compute in that dtype.
    """
    if dtype == "fp16" and device == "cpu":
        _require_half()
    scale = module.logit_scale.detach().clone()
    bias = module.logit_bias.detach().clone() if module.logit_bias is not None else None
    module = module.to(device=device, dtype=DTYPES[dtype])
    module.logit_scale = torch.nn.Parameter(scale.to(device), requires_grad=False)
    if bias is not None:
        module.logit_bias = torch.nn.Parameter(bias.to(device), requires_grad=False)
    if any(
        isinstance(m, torch.nn.Conv2d) and m.kernel_size != m.stride
        for m in module.visual.modules()
    ):
        module.visual.to(memory_format=torch.channels_last)
    return cast("torch.nn.Module", module)


def _require_half() -> None:
    x = torch.ones(1, 4, 4, 4, dtype=torch.float16)
    try:
        F.layer_norm(F.conv2d(x, torch.ones(4, 4, 1, 1, dtype=torch.float16)), (4,))
        F.gelu(x[0, 0] @ x[0, 1])
    except RuntimeError as err:
        raise ModelError(
            f"torch does not compute in fp16 on this CPU: {err}", hint="take precision bf16 or fp32"
        ) from err


# ---------------------------------------------------------------- tokenizer


def tokenizer_for(source: _sources.Source, shown: str) -> Any:
    """Return open_clip's tokenizer for the model.

    Raises:
        ModelError: If its files cannot be read, or hold no vocabulary.
    """
    text_cfg = source.model_cfg["text_cfg"]
    context = int(text_cfg.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH))
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    if not text_cfg.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=context, **kwargs)
    kwargs["tokenizer_mode"] = text_cfg.get("tokenizer_mode")
    try:
        tokenizer = HFTokenizer(
            str(source.tokenizer), context_length=context, local_files_only=True, **kwargs
        )
    except (
        Exception
    ) as err:  # transformers and tokenizers raise many types for files that they cannot read
        first = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ModelError(
            f"the tokenizer of '{shown}' in '{source.tokenizer}' cannot be read: {first}",
            hint="save it again with tokenizer.save_pretrained(folder)",
        ) from err
    vocabulary.check(tokenizer.tokenizer, shown)
    return tokenizer


def _token_ids(tokenizer: Any, text: str) -> int:
    """Return how many tokens a text has before anything is cut."""
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2
    clean = getattr(tokenizer, "clean_fn", None)
    return len(tokenizer.tokenizer(clean(text) if clean else text).input_ids)


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text's own tokens, all of them."""
    if isinstance(tokenizer, SimpleTokenizer):
        return list(tokenizer.encode(text))
    clean = getattr(tokenizer, "clean_fn", None)
    inner = tokenizer.tokenizer(clean(text) if clean else text, add_special_tokens=False)
    return list(inner.input_ids)


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id that stands for what the vocabulary lacks; None where a text's bytes are tokens."""
    inner = getattr(tokenizer, "tokenizer", None)
    return None if inner is None else getattr(inner, "unk_token_id", None)


def _tokenizer_text(tokenizer: Any) -> str:
    """Describe a tokenizer so that two which cut text otherwise differ."""
    kind = type(tokenizer).__name__
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
    if isinstance(tokenizer, SimpleTokenizer):
        content = f"{tokenizer.vocab_size} {sorted(tokenizer.all_special_ids)}"
    else:
        inner = tokenizer.tokenizer
        backend = getattr(inner, "backend_tokenizer", None)
        content = (
            backend.to_str() if backend is not None else repr(sorted(inner.get_vocab().items()))
        )
    digest_ = hashlib.sha256(content.encode()).hexdigest()[:32]
    return f"{kind} {clean} context={tokenizer.context_length} {digest_}"


# ---------------------------------------------------------------- the model


class OpenClipModel:
    """An :class:`~clipadapt.models.ImageTextModel` over a network of open_clip."""

    def __init__(
        self,
        module: torch.nn.Module,
        tokenizer: Any,
        source: _sources.Source,
        *,
        name: str,
        device: str,
        dtype: str,
        services: Services,
    ) -> None:
        self.module = module
        self._net: Any = module
        self.tokenizer = tokenizer
        self.source = source
        self.name = name
        self.device = device
        self.dtype = dtype
        self.services = services
        self._digests: dict[str, tuple[int, str]] = {}
        self._transform = _transform(module, source.preprocess_cfg)
        self._in_dtype: dict[str, OpenClipModel] = {}
        self._compiled: dict[tuple[Layer, bool], Callable[[torch.Tensor], torch.Tensor]] = {}
        self.identity: ModelIdentity | None = None

    @property
    def embed_dim(self) -> int:
        """Width of the joint space."""
        return int(self.source.model_cfg["embed_dim"])

    @property
    def context_length(self) -> int:
        """Tokens the tokenizer gives per text."""
        return int(self.tokenizer.context_length)

    @property
    def logit_scale(self) -> float:
        """The factor itself, exp of the parameter."""
        return float(
            self._net.logit_scale.detach().cpu().double().exp().reshape(())
        )  # mps has no double

    @property
    def logit_bias(self) -> float:
        """Added to every logit; 0 where the network has none."""
        bias = self._net.logit_bias
        return 0.0 if bias is None else float(bias.detach().reshape(()))

    @property
    def n_params(self) -> int:
        """Parameters of both towers."""
        return sum(p.numel() for p in self._net.parameters())

    @property
    def weights_sha256(self) -> str:
        """sha256 over name, shape, dtype and bytes of every tensor as it is now."""
        return self._weights_hash("")

    def _weights_hash(self, tower: str) -> str:
        """Hash all tensors or one tower's.

        The sha256 of a tensor is remembered with a fast hash of its bytes, which is taken anew each time: a write
        through ``.data`` moves neither address nor version.
        """
        total = hashlib.sha256()
        for name, tensor in self._net.state_dict(keep_vars=True).items():
            visual = name.startswith("visual.")
            head = name.startswith("logit_")
            if (tower == "image" and not visual) or (tower == "text" and (visual or head)):
                continue
            state = xxhash.xxh3_128_intdigest(_tensor_bytes(tensor))
            known = self._digests.get(name)
            if known is None or known[0] != state:
                known = (state, _tensor_digest(name, tensor))
                self._digests[name] = known
            total.update(known[1].encode())
        return total.hexdigest()

    def preprocess(self, train: bool = False, /) -> Callable[[Image.Image], torch.Tensor]:
        """Return the transform from an image to ``(3, H, W)``: open_clip's, or for ``train`` a random crop and flip."""
        if not train:
            return cast("Callable[[Image.Image], torch.Tensor]", self._transform)
        augment = self._crop_flip(SMALLEST_CROP)
        return lambda image: augment(image, int(torch.randint(2**62, (1,))))

    def pixels(
        self,
        inputs: Inputs[Any],
        rows: NDArray[np.int64],
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> torch.Tensor:
        """Load and preprocess some images, in threads; shape ``(len(rows), 3, H, W)``, float32."""
        load = self._loader(inputs, view, smallest_crop)
        workers = self.services.workers or hardware.cpu_count()
        return torch.stack(list(_encode.ahead(load, rows.tolist(), workers, 2 * len(rows))))

    def tokenize(self, texts: Sequence[str], /) -> torch.Tensor:
        """Return token ids, shape ``(n, context_length)``, int64.

        Raises:
            ModelError: If a text is longer than the context; nothing is cut in silence.
        """
        for text in texts:
            # A token has at least one byte: most texts need no count.
            if len(text.encode()) + 2 > self.context_length:
                n = _token_ids(self.tokenizer, text)
                if n > self.context_length:
                    raise ModelError(
                        f"a text of {n} tokens is longer than the {self.context_length} that "
                        f"'{self.name}' reads: '{_shortened(text)}'",
                        hint="shorten the class name or the template",
                    )
        tokens: torch.Tensor = self.tokenizer(list(texts))
        return tokens

    def name_tokens(self, names: Sequence[str], /) -> list[tuple[tuple[int, ...], int]]:
        """Return the token ids of each name, without special tokens, and how many of them stand for the unknown."""
        found = []
        for name in names:
            ids = tuple(_plain_ids(self.tokenizer, name))
            found.append((ids, ids.count(_unknown_id(self.tokenizer))))
        return found

    def trim(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Cut tokens ``(n, L)`` behind the last one that decides a feature."""
        return tokens[:, : int(self._lengths(tokens).max())]

    def encode_image(self, pixels: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode preprocessed images ``(n, 3, H, W)`` to float32 ``(n, D)``."""
        x = pixels.to(device=self.device, dtype=DTYPES[self.dtype])
        if layer == "pre_projection":
            return self._pooled(x).float()
        if layer.startswith(_blocks.PREFIX):
            for unit in self._units()[: int(layer.removeprefix(_blocks.PREFIX))]:
                x = unit.run(x)
            return x.float()
        if self.services.fast and _blocks.ends_early(self._net.visual):
            return self.encode_image_from(x, 0, layer)
        out: torch.Tensor = self._net.encode_image(x).float()
        return _at(layer, out)

    def image_units(self) -> tuple[tuple[str, ...], ...]:
        """Return per unit of the image tower what the names of its parameters begin with, input side first."""
        return tuple(unit.names for unit in self._units())

    def encode_image_from(
        self, states: torch.Tensor, unit: int, /, layer: Layer = "output"
    ) -> torch.Tensor:
        """Finish what ``encode_image(pixels, f"unit:{unit}")`` began; float32 ``(n, D)``."""
        x = states.to(device=self.device, dtype=DTYPES[self.dtype])
        for step in self._units()[unit:]:
            x = step.run(x)
        return _at(layer, x.float())

    def _units(self) -> tuple[_blocks.Unit, ...]:
        return _blocks.units(self._net.visual, fast=self.services.fast)

    def encode_text(self, tokens: torch.Tensor, /, layer: Layer = "output") -> torch.Tensor:
        """Encode token ids ``(n, L)``, ``L <= context_length``, to float32 ``(n, D)``."""
        if layer == "pre_projection":
            raise ModelError(
                "text features before the projection are not offered", hint="take layer 'output'"
            )
        tokens = tokens.to(self.device)
        tower = OwnText.of(self._net)
        if tower is None:
            out: torch.Tensor = self._net.encode_text(tokens)
        elif self.services.fast and tower.can_share():
            out = tower.with_shared(tower.tower.token_embedding(tokens), tokens, 0)
        elif tokens.shape[1] < tower.context_length:
            out = tower(tokens)
        else:
            out = self._net.encode_text(tokens)
        return _at(layer, out.float())

    def prompt_slots(
        self, classnames: Sequence[str], n_ctx: int, position: PromptPosition = "end", /
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens of prompts with slots for learnt vectors, and where the slots are.

        Tokens are cut behind the last one that decides a feature.

        Args:
            classnames: ``C`` class names.
            n_ctx: Slots per prompt.
            position: Where the class name stands: behind the slots, amid them, or before them.

        Returns:
            Token ids ``(C, L)`` and slots ``(C, n_ctx)``, both int64.

        Raises:
            ModelError: If slots and name are longer than the context.
        """
        for name, text in zip(classnames, _prompts.texts(classnames, n_ctx), strict=True):
            n = _token_ids(self.tokenizer, text)
            if n > self.context_length:
                raise ModelError(
                    f"{n_ctx} context vectors and the class name '{_shortened(name)}' are {n} tokens, longer than "
                    f"the {self.context_length} that '{self.name}' reads",
                    hint="lower method.n_ctx, take fewer words in method.ctx_init, or shorten the class name",
                )
        tokens, slots = _prompts.slots(self.tokenize, classnames, n_ctx, position)
        return self.trim(tokens).to(self.device), slots.to(self.device)

    def context_tokens(self, text: str, /) -> torch.Tensor:
        """Return the token ids of a text to start context vectors from, without special tokens.

        Raises:
            ModelError: If they leave no place for a class name.
        """
        n = _token_ids(self.tokenizer, text)
        if n >= self.context_length:
            raise ModelError(
                f"the words '{_shortened(text)}' are {n} tokens and leave no place for a class name: "
                f"'{self.name}' reads {self.context_length}",
                hint="take fewer words in method.ctx_init",
            )
        return _prompts.words_of(self.tokenize, text)

    def embed_tokens(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Return float32 token embeddings ``(..., W)``, before positions are added."""
        out: torch.Tensor = self._embedding()(tokens.to(self.device)).detach().float()
        return out

    def encode_token_embeddings(
        self,
        embeddings: torch.Tensor,
        tokens: torch.Tensor,
        /,
        layer: Layer = "output",
        shared: int = 0,
    ) -> torch.Tensor:
        """Encode texts whose token embeddings ``(n, L, W)`` are given; ``tokens`` decide masks and pooling.

        Args:
            embeddings: Token embeddings, before positions are added.
            tokens: Token ids, shape ``(n, L)``.
            layer: Which features.
            shared: Leading positions whose embeddings are the same in every text. Under a causal mask their
                states are too: they are computed once.
        """
        given = embeddings.to(self.device)
        tower = OwnText.of(self._net)
        if tower is not None and self.services.fast and tower.can_share():
            out = tower.with_shared(given, tokens.to(self.device), shared)
            return _at(layer, out.float())

        def replace(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
            return given.to(output.dtype)

        handle = self._embedding().register_forward_hook(replace)
        try:
            return self.encode_text(tokens, layer)
        finally:
            handle.remove()

    def nearest_tokens(self, vectors: torch.Tensor, k: int, /) -> list[list[tuple[str, float]]]:
        """Return per vector ``(n, W)`` the ``k`` vocabulary pieces of least Euclidean distance, with the distances."""
        embedding: Any = self._embedding()
        table = embedding.weight.detach().float()  # (V, W)
        exact = "donot_use_mm_for_euclid_dist"
        distances, ids = torch.cdist(vectors.float(), table, compute_mode=exact).topk(
            k, largest=False
        )
        words = [_prompts.piece(self.tokenizer, int(i)) for i in ids.flatten()]
        rows = iter(zip(words, distances.flatten().tolist(), strict=True))
        return [[next(rows) for _ in range(k)] for _ in vectors]

    def fused_state(self, network: torch.nn.Module, /) -> dict[str, torch.Tensor]:
        """Return the state of a network with split attention under the names that this model's own has."""
        return _attention.fuse(network)

    def fused_adapters(
        self, updates: Mapping[str, Mapping[str, torch.Tensor]], /
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Return low-rank updates of this split clone for the network as open_clip builds it."""
        return _attention.fuse_adapters(self._net, updates)

    def adapter_targets(self, tower: Tower, /) -> dict[str, list[str]]:
        """Return the layers that may carry adapters by role, input side first; of a split clone."""
        return _attention.targets(self._net)[tower]

    def _embedding(self) -> torch.nn.Module:
        text = getattr(self._net, "text", self._net)
        inner = getattr(text, "transformer", None)
        if inner is not None and hasattr(inner, "get_input_embeddings"):
            return cast("torch.nn.Module", inner.get_input_embeddings())
        return cast("torch.nn.Module", text.token_embedding)

    def logits(self, image_features: torch.Tensor, text_features: torch.Tensor, /) -> torch.Tensor:
        """Return ``logit_scale * image_features @ text_features.T + logit_bias``, shape ``(n, C)``."""
        scale = self._net.logit_scale.exp().reshape(())
        out: torch.Tensor = scale * image_features @ text_features.T
        bias = self._net.logit_bias
        return out if bias is None else out + bias.reshape(())

    def encode(
        self,
        inputs: Inputs[Any],
        /,
        tower: Tower,
        layer: Layer = "output",
        view: int = 0,
        smallest_crop: float = SMALLEST_CROP,
    ) -> NDArray[np.float32]:
        """Encode any number of examples through the feature store, in constant memory."""
        if tower == "text" and view:
            raise ValueError("texts have no augmented views")
        compute = (
            partial(self._images, inputs, layer, view, smallest_crop)
            if tower == "image"
            else partial(self._texts, inputs, layer)
        )
        with torch.no_grad():
            got = self.services.store.get_or_compute(
                self._space(tower, layer, view, smallest_crop), inputs.digests(), compute
            )
        self.services.meter.add(got.encode_seconds, got.seconds_spent, got.computed)
        return cast("NDArray[np.float32]", got.rows)

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares these weights and encodes through other services."""
        other = copy.copy(self)
        other.services = services
        return other

    def clone(self, *, split: bool = False) -> OpenClipModel:
        """Return a copy whose weights may be trained; ``split`` gives attention separate projections."""
        module = copy.deepcopy(self.module)
        if split:
            _attention.split(module)
        return self._with(module, self.dtype)

    def in_dtype(self, dtype: str, /) -> OpenClipModel:
        """Return the model with its weights as stored, cast to ``fp32`` or ``bf16``; frozen, built once."""
        if dtype == self.dtype:
            return self
        if dtype not in self._in_dtype:
            module = build(self.source, self.name)
            if self.identity is not None:
                identity.require_files(self.source.files, self.identity)
            self._in_dtype[dtype] = self._with(cast_weights(module, self.device, dtype), dtype)
        if self._in_dtype[dtype].services is not self.services:
            self._in_dtype[dtype] = self._in_dtype[dtype].with_services(self.services)
        return self._in_dtype[dtype]

    def save_folder(
        self,
        directory: Path,
        state: Mapping[str, torch.Tensor] | None = None,
        output: Path | None = None,
    ) -> None:
        """Write the model as a folder that ``local-dir:`` and open_clip load.

        Args:
            directory: An existing folder.
            state: Weights of the same architecture in the place of its own.
            output: Where the folder will be, as the user named it; ``directory`` if left out.
        """
        _sources.save_folder(
            directory, self._net, self.tokenizer, self.source, state, output=output
        )

    def open_clip_code(
        self, layer: Layer = "output", *, saved: bool = False, adapter: bool = False
    ) -> PortableCode:
        """Return what computes image features with open_clip alone."""
        code = _snippet.code(
            self.name,
            self.source,
            self._net.visual,
            layer,
            saved=saved,
            adapter=adapter,
            seed=RANDOM_SEED,
        )
        steps = ", ".join(str(step) for step in self._transform.transforms)
        return PortableCode(*code, preprocessing=f"upright, RGB on white; {steps}")

    def _with(self, module: torch.nn.Module, dtype: str) -> OpenClipModel:
        return OpenClipModel(
            module,
            self.tokenizer,
            self.source,
            name=self.name,
            device=self.device,
            dtype=dtype,
            services=self.services,
        )

    def _crop_flip(self, smallest: float) -> _augment.CropFlip:
        cfg = PreprocessCfg(**self._net.visual.preprocess_cfg)
        size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else tuple(cfg.size)
        return _augment.CropFlip(size, smallest, tuple(cfg.mean), tuple(cfg.std))

    def _loader(
        self, inputs: Inputs[Any], view: int, smallest_crop: float
    ) -> Callable[[int], torch.Tensor]:
        augment = self._crop_flip(smallest_crop)

        def load(index: int) -> torch.Tensor:
            image = inputs.examples[index]
            if not view:
                return cast("torch.Tensor", self._transform(image))
            return augment(image, _augment.view_seed(view, digest(inputs.examples, index)))

        return load

    def _space(
        self, tower: Tower, layer: Layer, view: int, smallest_crop: float = SMALLEST_CROP
    ) -> Space:
        # The weights alone do not tell heads, patch, pooling or activation apart: the config goes with them.
        config = json.dumps(_portable(self.source.model_cfg), sort_keys=True)
        weights = hashlib.sha256(f"{self._weights_hash(tower)} {config}".encode()).hexdigest()
        if tower == "text":
            preprocess = _tokenizer_text(self.tokenizer)
        else:
            steps = (
                f"{self._crop_flip(smallest_crop)} {_augment.VERSION}" if view else self._transform
            )
            preprocess = f"{steps} decode={DECODE_VERSION}"
        return Space(
            weights=weights,
            activation="quick_gelu" if self.source.model_cfg.get("quick_gelu") else "gelu",
            layer=layer,
            preprocess=preprocess,
            dtype=" ".join(self._arithmetic(tower)),
            view=view,
            tower=tower,
            libraries=identity.versions(*LIBRARIES[tower]),
        )

    def _arithmetic(self, tower: Tower) -> Iterator[str]:
        """Say how features are computed, as far as it decides their last bits."""
        yield self.dtype
        if self.device != "cpu":
            yield self.device.partition(":")[0]
        own = OwnText.of(self._net) if tower == "text" else None
        if self.services.fast and (
            _blocks.ends_early(self._net.visual)
            if tower == "image"
            else own is not None and own.can_share()
        ):
            yield "early"
        if tower == "image" and self.services.compile:
            yield "compiled"

    def _images(
        self,
        inputs: Inputs[Any],
        layer: Layer,
        view: int,
        smallest_crop: float,
        indices: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        load = self._loader(inputs, view, smallest_crop)
        size = self.services.batch_size or IMAGE_BATCH
        workers = self.services.workers or hardware.cpu_count()
        network: Callable[[torch.Tensor], torch.Tensor] = partial(self.encode_image, layer=layer)
        least = _encode.SMALLEST
        if self.services.compile:
            # Compiled for one shape: every batch is filled up to it.
            network, least = self._compile(layer, network), size
        with self.services.progress.track("encode images", len(indices), "images") as bar:
            for part, rows in _encode.images(load, network, indices, size, workers, least):
                bar.advance(len(part))
                yield part, rows

    def _compile(
        self, layer: Layer, network: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        key = layer, self.services.fast
        if key not in self._compiled:
            compile_: Any = torch.compile  # its overloads leave out isolate_recompiles
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
                        hint="install a C++ compiler, or leave out --set compile=on",
                    ) from err

            self._compiled[key] = run
        return self._compiled[key]

    def _texts(
        self, inputs: Inputs[Any], layer: Layer, indices: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        def tokens_of(part: NDArray[np.int64]) -> torch.Tensor:
            return self.tokenize([inputs.examples[int(i)] for i in part])

        size = self.services.batch_size or TEXT_BATCH
        network = partial(self.encode_text, layer=layer)
        with self.services.progress.track("encode texts", len(indices), "texts") as bar:
            for part, rows in _encode.texts(tokens_of, self._lengths, network, indices, size):
                bar.advance(len(part))
                yield part, rows

    def _lengths(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return how many leading positions of each row decide its feature; shape ``(n,)``."""
        whole = torch.full((len(tokens),), tokens.shape[1])
        if not self.services.fast:
            return whole
        text = getattr(self._net, "text", None)
        own = OwnText.of(self._net)
        if own is not None:
            return tokens.argmax(dim=1) + 1
        config = getattr(text, "config", None)  # of a Hugging Face tower, which masks the padding
        if config is None or getattr(config, "pad_token_id", None) is None:
            return whole
        used = tokens != config.pad_token_id
        last = tokens.shape[1] - used.flip(1).int().argmax(dim=1)
        return torch.where(used.any(dim=1), last, 1)

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        visual = self._net.visual
        if isinstance(visual, VisionTransformer):
            x = pixels
            if self.services.fast and _blocks.ends_early(visual):
                for unit in self._units()[:-1]:
                    x = unit.run(x)
            else:
                x = visual.transformer(visual._embeds(x))
            out: torch.Tensor = visual._pool(x)[0]
            return out
        if isinstance(visual, TimmModel):
            out = visual.trunk(pixels)
            return (
                out if out.ndim == 2 else out.flatten(2).mean(-1)
            )  # attention-pooled heads keep the map
        if isinstance(visual, ModifiedResNet):
            return cast(
                "torch.Tensor", visual(pixels)
            )  # its projection is part of the attention pool
        raise ModelError(f"no features before the projection of a {type(visual).__name__}")


def _transform(module: Any, preprocess_cfg: dict[str, Any]) -> Any:
    """Return open_clip's transform; ``resize_size`` of a config resizes to more than is cropped."""
    transform = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
    larger = preprocess_cfg.get("resize_size")
    if larger is None:
        return transform
    first, *rest = transform.transforms
    return Compose([Resize(int(larger), interpolation=first.interpolation), *rest])


def _at(layer: Layer, projected: torch.Tensor) -> torch.Tensor:
    if layer == "projected":
        return projected
    if layer == "output":
        return F.normalize(projected, dim=-1)
    raise ModelError(f"unknown layer '{layer}'", hint="take output, projected or pre_projection")


def _tensor_bytes(tensor: torch.Tensor) -> memoryview:
    data = tensor.detach().cpu().contiguous()
    return data.reshape(-1).view(torch.uint8).numpy().data


def _tensor_digest(name: str, tensor: torch.Tensor) -> str:
    head = f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode()
    return hashlib.sha256(head + hashlib.sha256(_tensor_bytes(tensor)).digest()).hexdigest()


def weights_sha256(module: torch.nn.Module) -> str:
    """Return the sha256 over name, shape, dtype and bytes of every tensor."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(_tensor_digest(name, tensor).encode())
    return total.hexdigest()


def _portable(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the places of text towers, which change when a folder is moved."""
    text = {
        k: v
        for k, v in model_cfg["text_cfg"].items()
        if not k.startswith("hf_model_") and k != "hf_tokenizer_name"
    }
    vision = {k: v for k, v in model_cfg["vision_cfg"].items() if k != "timm_model_pretrained"}
    return {**model_cfg, "text_cfg": text, "vision_cfg": vision}


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
