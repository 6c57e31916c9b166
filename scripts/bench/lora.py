"""Time a step of CLIP-LoRA: the shipped method against a reference implementation of the official code.

    python scripts/bench/lora.py [--model random:ViT-B-32] [--classes 10 100] [--blocks 3]

As in ``coop.py``, ours is ``clip/lora``'s ``fit``. The reference runs both towers at every step and the texts of all
classes at 77 positions. With the image tower only, it encodes the texts once, but has no frozen blocks.
The reference computes in float32; on a GPU also in float16 autocast, as the official code does there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import _common
import _device
from _common import (
    SEED,
    TEMPLATE,
    Bench,
    class_names,
    ours,
    precision_of,
    reference_steps,
    steps_of,
    table,
    train_task,
    write_images,
)
from coop import BOUND, BOUND_NOTE, DROP, HEAD, HEAD_COST, reference_batches, rows_of, variants

if TYPE_CHECKING:
    from collections.abc import Sequence


def opened(settings: dict[str, Any], folder: str, given: Sequence[str]) -> Any:
    """Return CLIP-LoRA and its model, with enough epochs for the steps."""
    n, size = settings["n"], settings["batch_size"]
    epochs = -(-(settings["steps"] + DROP + 1) // -(-n // size))
    whole = [
        f"data.name={settings['data']}",
        f"model.name={settings['model']}",
        f"method.batch_size={size}",
        f"method.augment={settings['augment']}",
        f"method.encoder={settings['encoder']}",
        f"method.blocks={settings['blocks'] or 'null'}",
        "method.steps_per_shot=null",
        f"method.epochs={epochs}",
        *given,
    ]
    return ours("lora", settings, whole, Path(folder))


def by_ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the shipped method's steps, and their bound."""
    from _products import bound

    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, precision_of(settings))
        found = steps_of(it, settings, DROP)
        return found | {"bound": bound(it, settings)}


def by_reference(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the baseline's steps."""
    import torch
    from baselines import clip_lora

    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as folder:
        it = opened(settings, folder, ["model.precision=fp32"])
        task = train_task(it.open().dataset, settings["n"], settings["classes"])
        tokens = it.backbone.tokenizer.inner([
            TEMPLATE.replace("{}", name) for name in task.classnames
        ])
        batches = reference_batches(it.backbone, task, settings)
        encoder = {"image": "vision"}.get(settings["encoder"], settings["encoder"])
        method = clip_lora.CLIPLoRA(it.backbone.module, encoder)
        # One step more, whose operations are counted.
        steps = method.train(
            batches, tokens, settings["steps"] + DROP + 2, half=settings["precision"] == "fp16"
        )
        return reference_steps(steps, settings, DROP)


MEASUREMENTS: Final = {"ours": by_ours, "reference": by_reference}


def works(classes: Sequence[int], blocks: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
    """Return title and settings of each case."""
    found: list[tuple[str, dict[str, Any]]] = [
        (f"both towers, {n} classes", {"encoder": "both", "blocks": 0, "classes": n})
        for n in classes
    ]
    for last in blocks:
        shown = f"last {last} units of the image tower" if last else "image tower"
        settings = {"encoder": "image", "blocks": last, "classes": classes[0]}
        found.append((f"{shown}, {classes[0]} classes", settings))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    bench = Bench("lora", __doc__ or "", MEASUREMENTS)
    add = bench.parser.add_argument
    add("--model", default="random:ViT-B-32")
    add("--classes", type=int, nargs="+", default=[10, 100])
    add(
        "--blocks",
        type=int,
        nargs="*",
        default=[0, 3],
        help="last units of the image tower that are adapted; 0 for all",
    )
    add("--augment", nargs="+", choices=["none", "crop_flip"], default=["none"])
    add("--n", type=int, default=160, help="training images")
    add("--size", type=int, default=227, help="side of an image in pixels")
    add("--batch-size", type=int, default=32)
    add("--steps", type=int, help="steps measured; 4 on a CPU, 24 on a GPU")
    add(
        "--workers", type=int, default=_common.cpu_count(), help="loader processes of the reference"
    )
    quick = {"classes": [3], "blocks": [2], "n": 8, "size": 40, "batch_size": 4, "steps": 2}
    o = bench.parse(argv, {**quick, "workers": 0, "model": ""})
    o.steps = o.steps or (4 if bench.device == _device.CPU else 24)
    with bench.scratch() as folder:
        write_images(folder / "data", "train", o.n, o.size, class_names(2))
        write_images(folder / "data", "test", 2, o.size, class_names(2))
        settings = {name: getattr(o, name) for name in ("n", "batch_size", "steps", "workers")} | {
            "data": f"folder:{folder / 'data'}",
            "model": o.model or _common.tiny_model(folder / "model"),
        }
        rows, (compared, base) = [], variants(bench.device)
        for augment in o.augment:
            for title, own in works(o.classes, o.blocks):
                runs = bench.alternate({
                    variant: (part, {**settings, **own, "augment": augment, "precision": p})
                    for variant, (part, p) in compared.items()
                })
                work = f"{title}, augmentation {'off' if augment == 'none' else 'on'}"
                rows += rows_of(work, runs, base, bench)
    notes = [
        f"Updates of q, k and v, r 2, dropout 0.25, batch {o.batch_size}, {o.steps} steps after {DROP} of warm-up.",
        "Where only the last units are adapted (`method.blocks`; the head is one of them), the reference adapts all",
        "of the image tower. In bf16, ours also uses bf16 in layers with gradients (`method.precision`).",
        "Memory is that of the main process, on a GPU that of the GPU.",
        bench.peak_note(),
        BOUND_NOTE,
    ]
    title = f"A training step of CLIP-LoRA (`{o.model or 'a tiny model'}`)"
    bench.write(title, table([*HEAD, *HEAD_COST, *BOUND], rows), notes)


if __name__ == "__main__":
    main()
