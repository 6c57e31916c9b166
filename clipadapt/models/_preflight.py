"""Check before any work that texts and images reach the towers as they did in training.

A start token that training did not have, padding with another token or on the other side, capitals and punctuation, a
feature read at the wrong token, or images normalised for another model: none of these is an error for open_clip, and
each costs accuracy.

M. Tschannen et al., "SigLIP 2", 2025, arXiv:2502.14786, and X. Zhai et al., "Sigmoid Loss for Language Image
Pre-Training", ICCV 2023, arXiv:2303.15343: texts have no start token, end with the end token, are padded to the full
64 positions, and attention reads the padding.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Final

from clipadapt.core.api.errors import ModelError
from clipadapt.models import _names, _transformers_clip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

PLAIN: Final = "a photo of a dog"
CAPITALS: Final = "A Photo of a DOG"
PUNCTUATION: Final = "a photo, of a dog."
PADDING: Final = {32_000: 1, 250_000: 1, 256_000: 0}
"""Id of the padding token of SigLIP by the size of its vocabulary: C4 in English, mC4, and Gemma (SigLIP 2)."""
GEMMA: Final = 256_000
"""Size of SigLIP 2's vocabulary; its training removed capitals and kept punctuation."""
NORMALISATION: Final = ("mean", "std")
HALF: Final = {"mean": [0.5] * 3, "std": [0.5] * 3}
NONE: Final = {"mean": [0.0] * 3, "std": [1.0] * 3}
OPENAI: Final = {
    "mean": list(_transformers_clip.OPENAI_MEAN),
    "std": list(_transformers_clip.OPENAI_STD),
}
SQUASHED: Final = {"interpolation": "bilinear", "resize_mode": "squash"}
SHORTEST: Final = {"interpolation": "bilinear", "resize_mode": "shortest"}
TRAINED: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("vit_*_siglip_*", {**HALF, "interpolation": "bicubic", "resize_mode": "squash"}),
    ("vit_pe_core_*", {**HALF, **SQUASHED}),
    ("vit_base_mci_*", {**NONE, **SHORTEST}),
    ("fastvit_mci[012]*", {**NONE, **SHORTEST}),
    ("fastvit_mci[34]*", {**OPENAI, **SHORTEST}),
)
"""Preprocessing in training by timm trunk: SigLIP, PE-Core, MobileCLIP; a test compares it with open_clip's tags."""


FAMILIES: Final = (
    ("eva*", "EVA-CLIP"),
    ("fastvit_mci*", "MobileCLIP"),
    ("vit_base_mci*", "MobileCLIP"),
    ("vit_pe_core_*", "PE-Core"),
)
"""Name of a family by the trunk of its image tower in timm."""


def needs(model_cfg: Mapping[str, Any], context_length: int) -> str:
    """Return the family of a model and what it needs, in words."""
    text = model_cfg["text_cfg"]
    trunk = str(model_cfg["vision_cfg"].get("timm_model_name") or "")
    family = next((name for pattern, name in FAMILIES if fnmatch(trunk, pattern)), "CLIP")
    how = f"texts of up to {context_length} tokens"
    if is_siglip(model_cfg):
        family = "SigLIP 2" if text.get("vocab_size") == GEMMA else "SigLIP"
        how = f"texts padded to {context_length} tokens, without capitals"
        how += "" if family == "SigLIP 2" else " and punctuation"
    elif "multimodal_cfg" in model_cfg:
        family = "CoCa"
    bias = model_cfg.get("init_logit_bias") is not None
    return f"{family}; {how}; {'sigmoid' if bias else 'softmax'} probabilities"


def is_siglip(model_cfg: Mapping[str, Any]) -> bool:
    """Return whether the text tower is SigLIP's: no mask, the feature read at the last position, a logit bias."""
    text = model_cfg["text_cfg"]
    last = text.get("pool_type") == "last" and bool(text.get("no_causal_mask"))
    return last and model_cfg.get("init_logit_bias") is not None and not text.get("hf_model_name")


def check_tokenizer(tokenizer: Any, model_cfg: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that does not give the text tower what it was trained on.

    Args:
        tokenizer: A :class:`clipadapt.models._tokenize.Tokenizer`.
        model_cfg: Config of the model.

    Raises:
        ModelError: With every fault that was found.
    """
    text = model_cfg["text_cfg"]
    if text.get("hf_model_name") or text.get("tokenizer_mode"):
        return  # a text tower of transformers masks and pools by its own config
    row = tokenizer.inner([PLAIN])[0]
    n = min(tokenizer.n_tokens(PLAIN), len(row))
    faults = list(_token_faults(row, n, text))
    if is_siglip(model_cfg):
        faults += _siglip_faults(tokenizer, row, n, text)
    if faults:
        raise ModelError(
            f"the tokenizer of '{tokenizer.shown}' does not fit its text tower: {'; '.join(faults)}",
            hint="use the tokenizer files and the text_cfg (context_length, tokenizer_kwargs) that the weights were "
            "published with",
        )


def _token_faults(row: torch.Tensor, n: int, text: Mapping[str, Any]) -> Iterator[str]:
    """Yield faults of one tokenized text of ``n`` tokens, ``row`` of shape ``(context_length,)``."""
    size = int(text.get("vocab_size", 49408))
    if int(row.max()) >= size:
        yield f"it gives token {int(row.max())}, and the tower has embeddings of {size} tokens"
    pool = text.get("pool_type", "argmax")
    if pool == "argmax" and not text.get("embed_cls") and int(row.argmax()) != n - 1:
        yield "the tower reads the feature at the largest token id, which is not the end of the text"
    if pool == "eos":
        eos = int(text.get("eos_id", 2))
        if not bool((row[n - 1] == eos) & (row == eos).any()):
            yield f"the tower reads the feature at token {eos} (eos_id), and texts end with token {int(row[n - 1])}"


def _siglip_faults(
    tokenizer: Any, row: torch.Tensor, n: int, text: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what differs from SigLIP's training."""
    inner = tokenizer.inner
    capitals, punctuation = inner([CAPITALS])[0], inner([PUNCTUATION])[0]
    if not bool((capitals == row).all()):
        yield "it distinguishes capitals, which SigLIP's training removed (tokenizer_kwargs: clean)"
    size = int(text.get("vocab_size", 0))
    if size != GEMMA and bool((capitals == row).all()) and not bool((punctuation == row).all()):
        yield "it keeps punctuation, which SigLIP's training removed (tokenizer_kwargs: clean=canonicalize)"
    first = tokenizer.plain_ids(PLAIN)[0]
    known = getattr(inner, "tokenizer", None)
    if known is None:
        yield "it is CLIP's own, with a start token and zeros as padding (hf_tokenizer_name is missing)"
        return
    if int(row[0]) == known.pad_token_id != first:
        yield "it pads on the left, and SigLIP was trained with padding on the right"
    elif int(row[0]) != first:
        yield f"texts begin with token {int(row[0])}, and SigLIP has no start token"
    elif known.eos_token_id is not None and int(row[n - 1]) != known.eos_token_id:
        yield "texts do not end with the end token"
    pad = PADDING.get(size)
    if pad is not None and known.pad_token_id != pad:
        yield f"it pads with token {known.pad_token_id}, and this vocabulary of SigLIP was padded with token {pad}"
    if pad is not None and tokenizer.context_length != 64:
        yield f"context_length is {tokenizer.context_length}, and SigLIP was trained with texts padded to 64 positions"


def trained_preprocessing(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing that an image tower was trained with, where it is not open_clip's default."""
    trunk = str(model_cfg["vision_cfg"].get("timm_model_name") or "")
    known = (found for pattern, found in TRAINED if fnmatch(trunk, pattern))
    return dict(next(known, {}))


def check_images(
    model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], shown: str
) -> tuple[str, ...]:
    """Return notes on the preprocessing that a folder or hub repository states.

    Raises:
        ModelError: If it states none, and the image tower was trained with another one than open_clip's default.
    """
    trained = trained_preprocessing(model_cfg)
    missing = [k for k in NORMALISATION if not preprocess_cfg.get(k)]
    if missing and trained:
        raise ModelError(
            f"the config of '{shown}' does not say how images are normalised ({', '.join(missing)}), and its image "
            "tower was trained with another preprocessing than open_clip's default",
            hint=f"add preprocess_cfg to {_names.CONFIG_NAME}; open_clip's weights of this tower use "
            + described(trained),
        )
    other = [k for k in NORMALISATION if trained and list(preprocess_cfg[k]) != trained[k]]
    if not other:
        return ()
    stated = ", ".join(f"{k} {list(preprocess_cfg[k])}" for k in other)
    usual = ", ".join(f"{k} {trained[k]}" for k in other)
    note = f"{shown}: images are normalised with {stated}; open_clip's weights of this image tower use {usual}"
    return (note,)


def described(preprocessing: Mapping[str, Any]) -> str:
    """Return a preprocessing as text."""
    return ", ".join(f"{key} {value}" for key, value in preprocessing.items())
