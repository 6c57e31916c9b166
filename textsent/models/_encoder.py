"""One adapter over transformers' encoders: build, cut, run as far as the layer that is read."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, cast, get_args

import numpy as np
import torch
import transformers
import xxhash
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from clipadapt.core.api.errors import ModelError, did_you_mean
from clipadapt.core.api.features import Space
from clipadapt.core.files import identity
from clipadapt.core.files import tokenizers as vocabulary
from clipadapt.core.files.hardware import exact_float32
from textsent.models import Pooling
from textsent.models._configurations import LAYER_LISTS, LORA_TARGETS
from textsent.models._sources import no_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from clipadapt.core.api.context import Services
    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.model import ModelIdentity
    from textsent.models._sources import Source

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM_SEED: Final = 20191002
BATCH: Final = 64
PAD_TO: Final = 8
SMALLEST: Final = 16
"""Rows of a forward pass at the least: with fewer, CPU kernels take another path and give other last bits."""
CHUNK: Final = 8192
"""Texts cut at once; bounds the memory."""
REMEMBERED: Final = 200_000
"""Texts whose pieces are kept."""
MANY_CUT: Final = 0.01
"""Share of texts cut from which a run is flagged."""
NO_LIMIT: Final = 1 << 30
"""A tokenizer without a limit of its own states a number above this."""


# ---------------------------------------------------------------- build


def load(source: Source, *, name: str, device: str, dtype: str, services: Services) -> Encoder:
    """Build the model of a source on its device.

    Raises:
        ModelError: If transformers cannot build it, or weights and configuration do not fit.
    """
    set_threads(services)
    exact_float32()
    module, fresh = build(source, name)
    tokenizer = None
    if source.tokenizer is not None:
        tokenizer = build_tokenizer(source, name)
        embeddings: Any = module.get_input_embeddings()
        n_rows = int(embeddings.num_embeddings)
        if len(tokenizer) > n_rows:
            raise ModelError(
                f"the tokenizer of '{name}' knows {len(tokenizer)} pieces, and the model has {n_rows} embeddings",
                hint="put the tokenizer the model was trained with into its folder",
            )
    placed: Any = module
    return Encoder(
        placed.to(device),
        tokenizer,
        fresh,
        name=name,
        device=device,
        dtype=dtype,
        services=services,
    )


def build(source: Source, name: str) -> tuple[PreTrainedModel, frozenset[str]]:
    """Build the encoder in float32 on the CPU; no head, frozen, in evaluation mode.

    Weights that are drawn are the same at every call.

    Returns:
        The encoder, and the names of parameters that its checkpoint does not hold (a pooler's).

    Raises:
        ModelError: If transformers cannot build it, or weights and configuration do not fit.
    """
    fresh: frozenset[str] = frozenset()
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(RANDOM_SEED)
        if source.folder is None:
            module = encoder_of(configuration(source, name), name)
        else:
            module, fresh = _loaded(source, name)
    module.eval().requires_grad_(False)
    for needed in ("hidden_size", "num_hidden_layers"):
        if not hasattr(module.config, needed):
            raise ModelError(
                f"'{name}' is a {type(module).__name__}, which is no text encoder",
                hint="take an encoder such as minilm or distilbert-base-uncased",
            )
    return module, fresh


def configuration(source: Source, name: str) -> PreTrainedConfig:
    """Return a source's configuration as transformers reads it.

    Raises:
        ModelError: If transformers has no such architecture, or a value is not valid.
    """
    values = {k: v for k, v in source.config.items() if k != "model_type"}
    try:
        return AutoConfig.for_model(source.config["model_type"], **values)
    except Exception as err:  # transformers and its validation raise many types for a config
        raise _cannot_build(name, err) from err


def build_tokenizer(source: Source, name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a source.

    Raises:
        ModelError: If its files cannot be read.
    """
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                str(source.tokenizer), local_files_only=True, trust_remote_code=False
            )
    except Exception as err:  # tokenizers raises plain exceptions for files that it cannot read
        raise ModelError(
            f"the tokenizer of '{name}' cannot be read: {_first_line(err)}",
            hint="save it again with tokenizer.save_pretrained(folder)",
        ) from err
    if tokenizer.pad_token_id is None:
        # The mask hides what stands there; any piece will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    vocabulary.check(tokenizer, name)
    return tokenizer


def _loaded(source: Source, name: str) -> tuple[PreTrainedModel, frozenset[str]]:
    try:
        module, info = AutoModel.from_pretrained(
            str(source.folder),
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
        )
    except Exception as err:  # torch, safetensors and transformers raise many types for a file
        if any(p.suffix == ".bin" for p in source.files):
            raise ModelError(
                f"the weights of '{name}' cannot be read as plain tensors: {_first_line(err)}",
                hint="save them as safetensors where you trust them: model.save_pretrained(folder)",
            ) from err
        raise _cannot_build(name, err) from err
    missing = set(info["missing_keys"])
    fresh = frozenset(k for k in missing if k.startswith("pooler."))
    if missing - fresh:
        first = sorted(missing - fresh)
        raise ModelError(
            f"the weights of '{name}' do not fit its config.json: tensor '{first[0]}' is missing "
            f"({len(first)} are)",
            hint="fetch config.json and weights of one and the same model",
        )
    return module, fresh


def encoder_of(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Return an encoder without weights of its own.

    Raises:
        ModelError: If transformers cannot build it.
    """
    return _made(AutoModel, config, name)


def classifier_of(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Return a sequence classifier without weights of its own.

    Raises:
        ModelError: If transformers cannot build it.
    """
    return _made(AutoModelForSequenceClassification, config, name)


def _made(kind: Any, config: PreTrainedConfig, name: str) -> PreTrainedModel:
    try:
        module: PreTrainedModel = kind.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as err:
        raise _cannot_build(name, err) from err
    return module


def _cannot_build(name: str, err: BaseException) -> ModelError:
    return ModelError(
        f"transformers cannot build '{name}': {type(err).__name__}: {_first_line(err)}",
        hint=f"check its config.json; transformers here is {transformers.__version__}",
    )


def _first_line(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's loading reports and bars for a moment; what matters is checked here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def set_threads(services: Services) -> None:
    """Give the framework the threads that were asked for."""
    if services.threads is not None and services.threads != torch.get_num_threads():
        torch.set_num_threads(services.threads)


# ---------------------------------------------------------------- the model


class Encoder:
    """A :class:`~textsent.models.TextEncoder` over a model of transformers.

    ``module`` holds the weights as they are stored, in float32; :meth:`encode` runs a copy cast to ``dtype``.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        fresh: frozenset[str],
        *,
        name: str,
        device: str,
        dtype: str,
        services: Services,
    ) -> None:
        self.module = module
        self._net: Any = module
        self._tokenizer = tokenizer
        self._cutting = "" if tokenizer is None else tokenizer_digest(tokenizer)
        self._special = 0 if tokenizer is None else tokenizer.num_special_tokens_to_add()
        self._fresh = fresh
        self.name = name
        self.device = device
        self.dtype = dtype
        self.services = services
        self._pieces: dict[tuple[str, int], list[int]] = {}
        self._whole: dict[str, int] = {}  # text -> its tokens, where nothing is cut
        self._digests: dict[str, tuple[int, str]] = {}
        self._cast: dict[str, Any] = {}  # sha256 of the weights -> the network in ``dtype``
        self.identity: ModelIdentity | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            ModelError: If the model has none (random weights of a configuration alone).
        """
        if self._tokenizer is None:
            raise no_tokenizer(self.name)
        return self._tokenizer

    @property
    def architecture(self) -> str:
        """Model type of the configuration."""
        return str(self._net.config.model_type)

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self._net.config.hidden_size)

    @property
    def n_layers(self) -> int:
        """Layers above the embeddings."""
        return int(self._net.config.num_hidden_layers)

    @property
    def max_length(self) -> int:
        """Pieces the model can read, special ones included."""
        return max_length(self.module, self._tokenizer)

    @property
    def n_params(self) -> int:
        """Parameters of the encoder."""
        return sum(p.numel() for p in self._net.parameters())

    @property
    def weights_sha256(self) -> str:
        """sha256 over name, shape, dtype and bytes of every tensor as it is now.

        That of a tensor is remembered with a fast hash of its bytes, which is taken anew each time.
        """
        total = hashlib.sha256()
        for name, tensor in self._net.state_dict().items():
            data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            state = xxhash.xxh3_128_intdigest(data)
            known = self._digests.get(name)
            if known is None or known[0] != state:
                head = f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode()
                known = (
                    state,
                    hashlib.sha256(head + hashlib.sha256(data).digest()).hexdigest(),
                )
                self._digests[name] = known
            total.update(known[1].encode())
        return total.hexdigest()

    def tokenize(self, texts: Sequence[str], /, max_length: int | None = None) -> list[list[int]]:
        """Return the piece ids of each text, cut at ``max_length``; a text is cut once and remembered.

        Raises:
            ModelError: If ``max_length`` is more than the model can read.
        """
        limit = self._limit(max_length)
        self._report_cut(texts, limit)
        return self._tokenize(texts, limit)

    def _tokenize(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        new = list(dict.fromkeys(t for t in texts if (t, limit) not in self._pieces))
        if new:
            if len(self._pieces) + len(new) > REMEMBERED:
                self._pieces.clear()
                new = list(dict.fromkeys(texts))
            found = self.tokenizer(
                new,
                truncation=True,
                max_length=limit,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            self._pieces.update(zip(((t, limit) for t in new), found, strict=True))
        return [list(self._pieces[t, limit]) for t in texts]

    def _report_cut(self, texts: Sequence[str], limit: int) -> None:
        """Warn where texts have more tokens than are read; flag the run where many do."""
        # A token covers a byte at least, so most short texts need no tokenizer to be counted.
        long = [t for t in texts if len(t.encode()) + self._special >= limit]
        ids = self._tokenize(long, limit)
        full = [t for t, row in zip(long, ids, strict=True) if len(row) == limit]
        new = [t for t in dict.fromkeys(full) if t not in self._whole]
        if new:
            rows = self.tokenizer(
                new, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )["input_ids"]
            self._whole.update(zip(new, map(len, rows), strict=True))
        cut = sum(self._whole[t] > limit for t in full)
        if cut:
            share = cut / len(texts)
            way_out = (
                f"; this model reads up to {self.max_length}: --set method.max_length={self.max_length}"
                if limit < self.max_length
                else ", all that this model reads"
            )
            self.services.report(
                "texts_cut",
                f"{cut} of {len(texts)} texts ({share:.1%}) are truncated to {limit} tokens{way_out}",
                record=share >= MANY_CUT,
            )

    def encode(
        self,
        inputs: Inputs[str],
        /,
        layer: int = -1,
        pooling: Pooling = "cls",
        max_length: int | None = None,
    ) -> NDArray[np.float32]:
        """Encode any number of texts through the feature store, see :class:`~textsent.models.TextEncoder`."""
        place, limit = self._layer(layer), self._limit(max_length)
        known = get_args(Pooling)
        if pooling not in known:
            raise ModelError(
                f"unknown pooling '{pooling}'{did_you_mean(pooling, known)}",
                hint=f"take {' or '.join(known)}",
            )
        self._report_cut([inputs.examples[i] for i in range(len(inputs))], limit)
        set_threads(self.services)
        got = self.services.store.get_or_compute(
            self._space(place, pooling, limit),
            inputs.digests(),
            partial(self._rows, inputs, place, pooling, limit),
        )
        self.services.meter.add(got.encode_seconds, got.seconds_spent, got.computed)
        return cast("NDArray[np.float32]", got.rows)

    def classifier(self, classnames: Sequence[str], seed: int, /) -> PreTrainedModel:
        """Return a sequence classifier on a copy of this encoder, float32, its new head drawn from ``seed``.

        Raises:
            ModelError: If transformers has no sequence classifier of this architecture.
        """
        config = copy.deepcopy(self._net.config)
        config.id2label = dict(enumerate(classnames))
        config.label2id = {name: i for i, name in enumerate(classnames)}
        config.problem_type = "single_label_classification"
        config.pad_token_id = (
            config.pad_token_id if self._tokenizer is None else self._tokenizer.pad_token_id
        )
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            model: Any = classifier_of(config, self.name)
        # What the checkpoint did not hold is drawn with the head.
        state = {k: v for k, v in self._net.state_dict().items() if k not in self._fresh}
        body: Any = getattr(model, model.base_model_prefix)
        missing = set(body.load_state_dict(state, strict=False).missing_keys) - self._fresh
        if missing:
            raise ModelError(
                f"the encoder of {type(model).__name__} is not that of '{self.name}': it also has "
                f"'{min(missing)}'",
                hint="take another architecture",
            )
        return cast("PreTrainedModel", model.eval().to(self.device))

    def lora_targets(self) -> tuple[str, ...]:
        """Return the names of the query and value projections.

        Raises:
            ModelError: If the architecture is not known; the message says how to name them.
        """
        return lora_targets(self.module)

    def with_services(self, services: Services, /) -> Self:
        """Return a model that shares these weights and encodes through other services."""
        other = copy.copy(self)
        other.services = services
        return other

    def clone(self) -> Encoder:
        """Return a copy whose weights may be trained without a change to this model."""
        return Encoder(
            copy.deepcopy(self.module),
            self._tokenizer,
            self._fresh,
            name=self.name,
            device=self.device,
            dtype=self.dtype,
            services=self.services,
        )

    def states(self, pieces: Sequence[Sequence[int]], place: int) -> tuple[Any, Any]:
        """Run one batch as far as layer ``place``.

        Args:
            pieces: ``n`` rows of piece ids, padded here.
            place: 0 to ``n_layers``.

        Returns:
            States ``(n, L, D)`` and mask ``(n, L)``, 1 where there is no padding.
        """
        padded = _padded(pieces, max(map(len, pieces)), self._padding)
        return self._states(self._network(), *padded, place)

    @property
    def _padding(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def _limit(self, asked: int | None) -> int:
        most = self.max_length
        if asked is None:
            return most
        if asked > most:
            raise ModelError(
                f"'{self.name}' reads at most {most} tokens, got max_length {asked}",
                hint=f"take max_length {most} or less",
            )
        if asked <= self._special:
            raise ModelError(
                f"max_length {asked} leaves no room for text beside the {self._special} special tokens",
                hint=f"take max_length {self._special + 1} to {most}",
            )
        return asked

    def _layer(self, asked: int) -> int:
        place = asked + self.n_layers + 1 if asked < 0 else asked
        if not 0 <= place <= self.n_layers:
            raise ModelError(
                f"'{self.name}' has no layer {asked}",
                hint=f"take 0 (the embeddings) to {self.n_layers}, or -1 to {-self.n_layers - 1}",
            )
        return place

    def _space(self, place: int, pooling: str, limit: int) -> Space:
        # The weights alone do not tell the number of heads or the activation: the config goes with them.
        config = json.dumps(_portable(self._net.config), sort_keys=True, default=str)
        weights = hashlib.sha256(f"{self.weights_sha256} {config}".encode()).hexdigest()
        kind = self.device.partition(":")[0]
        return Space(
            weights=weights,
            activation=str(
                getattr(self._net.config, "hidden_act", None)
                or getattr(self._net.config, "activation", "")
            ),
            layer=f"{place}/{pooling}/{limit}",
            preprocess=self._cutting,
            dtype=self.dtype if kind == "cpu" else f"{self.dtype} {kind}",
            view=0,
            tower="text",
            libraries=identity.versions("torch", "transformers", "tokenizers"),
        )

    def _rows(
        self,
        inputs: Inputs[str],
        place: int,
        pooling: str,
        limit: int,
        indices: NDArray[np.int64],
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        size = self.services.batch_size or BATCH
        network = (
            self._network()
        )  # once: to see whether weights have changed, all of them are hashed
        with self.services.progress.track("encode texts", len(indices), "texts") as bar:
            for start in range(0, len(indices), CHUNK):
                part = indices[start : start + CHUNK]
                pieces = self._tokenize([inputs.examples[int(i)] for i in part], limit)
                for some, length in batches(np.array([len(p) for p in pieces]), limit, size):
                    batch = [pieces[i] for i in some]
                    yield part[some], self._pooled(network, batch, length, place, pooling, size)
                    bar.advance(len(some))

    def _pooled(
        self,
        network: Any,
        pieces: list[list[int]],
        length: int,
        place: int,
        pooling: str,
        size: int,
    ) -> NDArray[np.float32]:
        """Return the features ``(n, D)`` of one batch; none depends on the others of its batch."""
        n = len(pieces)
        pieces = pieces + pieces[:1] * (-n % min(SMALLEST, size))
        ids, mask = _padded(pieces, length, self._padding)
        states, mask = self._states(network, ids, mask, place)  # (m, L, D), (m, L)
        if pooling == "cls":
            rows = states[:n, 0].float()
        else:
            weight = mask[:n, :, None].float()
            rows = (states[:n].float() * weight).sum(1) / weight.sum(1)
        return np.asarray(rows.cpu().numpy(), dtype=np.float32)

    def _states(
        self, net: Any, ids: torch.Tensor, mask: torch.Tensor, place: int
    ) -> tuple[Any, Any]:
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            return _run(partial(net, input_ids=ids, attention_mask=mask), net, place), mask

    def _network(self) -> Any:
        """Return the encoder cast to the effective dtype; cast again where its weights have changed."""
        if self.dtype == "fp32":
            return self._net
        now = self.weights_sha256
        if now not in self._cast:
            self._cast.clear()
            self._cast[now] = copy.deepcopy(self._net).to(DTYPES[self.dtype])
        return self._cast[now]


def batches(
    lengths: NDArray[np.int64], limit: int, size: int
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yield ``(rows, padded length)`` with texts of like length together, the longest first.

    A text is padded to the next multiple of :data:`PAD_TO` above its own length, whatever its company: so its features
    depend on itself alone. At least one piece of padding keeps every batch on the kernels that take a mask.

    Args:
        lengths: Pieces of each text, shape ``(n,)``.
        limit: The longest there may be.
        size: Texts of one batch.
    """
    padded = np.minimum((lengths // PAD_TO + 1) * PAD_TO, limit)
    # A text of full length has no padding; it goes with its like.
    groups = 2 * padded + (lengths == padded)
    for group in np.unique(groups)[::-1]:
        rows = np.flatnonzero(groups == group)
        for begin in range(0, len(rows), size):
            yield rows[begin : begin + size], int(group) // 2


def max_length(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return how many pieces a model can read: the lower of its positions and its tokenizer's limit."""
    embeddings = getattr(getattr(module, "embeddings", None), "position_embeddings", None)
    if isinstance(embeddings, torch.nn.Embedding):
        # RoBERTa and its kin count positions from behind the padding index.
        skipped = 0 if embeddings.padding_idx is None else embeddings.padding_idx + 1
        most = embeddings.num_embeddings - skipped
    else:
        most = int(getattr(module.config, "max_position_embeddings", None) or NO_LIMIT)
    if tokenizer is not None:
        most = min(most, int(tokenizer.model_max_length))
    return most if 0 < most < NO_LIMIT else 512


def lora_targets(module: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the query and value projections of an encoder or classifier.

    Raises:
        ModelError: If the architecture is not known.
    """
    kind = str(module.config.model_type)
    linear = {
        name.rpartition(".")[2]
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear)
    }
    targets = LORA_TARGETS.get(kind)
    if targets is None or not linear.issuperset(targets):
        raise ModelError(
            f"LoRA's target modules are not known for the architecture '{kind}'; "
            f"its linear layers are {', '.join(sorted(linear)) or 'none'}",
            hint="name those to adapt, as in --set method.target_modules=[query,value]",
        )
    return targets


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe a tokenizer so that two which cut text otherwise differ.

    How the last caller cut and padded is left out; each call here says it anew.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = repr(sorted(tokenizer.get_vocab().items()))
    else:
        content = json.dumps(
            {**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True
        )
    return (
        f"{type(tokenizer).__name__} {tokenizer.truncation_side} "
        f"{hashlib.sha256(content.encode()).hexdigest()[:32]}"
    )


class _ReachedError(Exception):
    """Raised by a hook to leave a forward pass where everything asked for is known."""


def _run(forward: Callable[..., Any], net: Any, place: int) -> torch.Tensor:
    """Return the states of a layer, shape ``(n, L, D)``; layers above it are not run where they can be found."""
    n_layers = int(net.config.num_hidden_layers)
    if place == n_layers:
        return cast("torch.Tensor", forward().last_hidden_state)
    layers = _layers(net, n_layers)
    if layers is None:
        return cast("torch.Tensor", forward(output_hidden_states=True).hidden_states[place])
    seen: list[torch.Tensor] = []

    def leave(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    # What goes into the layer above is the state asked for.
    hook = layers[place].register_forward_pre_hook(leave, with_kwargs=True)
    try:
        with contextlib.suppress(_ReachedError):
            forward()
    finally:
        hook.remove()
    return seen[0]


def _layers(net: Any, n_layers: int) -> torch.nn.ModuleList | None:
    for path in LAYER_LISTS:
        try:
            found = net.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, torch.nn.ModuleList) and len(found) == n_layers:
            return found
    return None


def _padded(
    pieces: Sequence[Sequence[int]], length: int, padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, shape ``(n, length)``, int64."""
    ids = np.full((len(pieces), length), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(pieces):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _portable(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what of a configuration decides the states: no path, label or release."""
    aside = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type"}
    return {
        k: v for k, v in config.to_dict().items() if k not in aside and k != "transformers_version"
    }
