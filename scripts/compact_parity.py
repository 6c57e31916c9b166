"""Write the compact copies of the reference fixtures to tests/reference/data.

usage: python scripts/compact_parity.py PARITY [FIXTURE...]     PARITY is the folder of all fixtures

Fixtures are copied as they are. The tiny CLIP, whose values are all exact in float16, is stored as float16, with only
the token embeddings that the texts of some fixture use
(``token_embedding.rows`` and ``.values``).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.tokenizer import SimpleTokenizer
from safetensors.numpy import load_file, save_file

DATA = Path(__file__).resolve().parents[1] / "tests" / "reference" / "data"
EMBEDDING = "token_embedding.weight"
FIXTURES = (
    "clip",
    "zero_shot",
    "linear_probe",
    "metrics",
    "text_baseline",
    "coop",
    "clip_lora",
    "tip_adapter",
    "clip_adapter",
    "wise_ft",
    "ape",
    "clap",
    "cocoop",
    "cross_modal",
    "descriptions",
    "gda",
    "ivlp",
    "kgcoop",
    "lp_plus_plus",
    "maple",
    "prograd",
    "proker",
    "prolip",
    "promptsrc",
    "taskres",
    "tda",
    "tpt",
    "transclip",
    "zero",
)


def strings(value: Any) -> set[str]:
    """Return every string inside a JSON value."""
    if isinstance(value, str):
        return {value}
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    return set().union(*(strings(child) for child in children))


def tokens_in_use(parity: Path) -> np.ndarray:
    """Return the sorted token ids of every text that a fixture can contain."""
    tokenizer = SimpleTokenizer()
    used = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    for spec_path in sorted(parity.glob("*/spec.json")):
        spec = json.loads(spec_path.read_text(encoding="utf-8"))
        described = {k: v for k, v in spec.items() if k not in {"tensors", "source"}}
        found = {s for s in strings(described) if len(s) < 200}
        templates = {s for s in found if "{}" in s or "{c}" in s} | {"{}", "{}.", "X X X {}."}
        names = {n for k, v in described.items() if k.startswith("classnames") for n in strings(v)}
        texts = {s.replace("_", " ") for s in found} | found
        for template in templates:
            for name in names | {n.replace("_", " ") for n in names}:
                texts.add(template.replace("{c}", "{}").replace("{}", name))
        # A prompt of trained context, fixed words and a name.
        texts |= {f"X {n.replace('_', ' ')}." for n in names}
        for text in texts:
            used.update(tokenizer.encode(text))
        for name, tensor in load_file(spec_path.parent / "tensors.safetensors").items():
            if "token" in name and tensor.dtype == np.int64:
                used.update(np.unique(tensor).tolist())
    return np.array(sorted(used), dtype=np.int64)


def compact_clip(parity: Path, target: Path) -> None:
    """Write the checkpoint with half-precision values and the embeddings in use.

    Raises:
        ValueError: If a value is not exact in float16.
    """
    state = load_file(parity / "clip" / "model.safetensors")
    halves = {name: tensor.astype(np.float16) for name, tensor in state.items()}
    for name, tensor in state.items():
        if not np.array_equal(halves[name].astype(np.float32), tensor.astype(np.float32)):
            raise ValueError(f"{name} is not exact in float16")
    rows = tokens_in_use(parity)
    whole = halves.pop(EMBEDDING)
    stored = halves | {
        "token_embedding.rows": rows,
        "token_embedding.values": np.ascontiguousarray(whole[rows]),
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(stored, target / "model.safetensors")
    shutil.copyfile(parity / "clip" / "config.json", target / "config.json")
    print(f"clip: {len(rows)} of {len(whole)} token embeddings")


def main() -> None:
    """Write the copies and print their sizes."""
    if len(sys.argv) < 2:
        sys.exit(str(__doc__))
    parity = Path(sys.argv[1])
    for name in sys.argv[2:] or FIXTURES:
        target = DATA / name
        if name == "clip":
            compact_clip(parity, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            for file in ("spec.json", "tensors.safetensors"):
                shutil.copyfile(parity / name / file, target / file)
        size = sum(p.stat().st_size for p in target.iterdir())
        print(f"{name}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
