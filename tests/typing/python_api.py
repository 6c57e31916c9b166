"""Checked by mypy, never run: the Python API is typed, and a name that does not exist is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    import clipadapt
    import textsent

    model: clipadapt.Model = clipadapt.load_model("stitched", precision="fp32")
    data = clipadapt.load_dataset("openmoji:line", templates="7")
    run: clipadapt.Run = clipadapt.fit("coop", model, data, shots=16, seed=1, n_ctx=4)
    start: clipadapt.Run = clipadapt.zero_shot("stitched", "openmoji:line", split="val")
    other: clipadapt.Run = clipadapt.evaluate(run, "openmoji:color", split="test")
    loaded: clipadapt.Run = clipadapt.load_run("runs/a/b/c")
    found: clipadapt.Results = clipadapt.sweep(methods=["coop"], models=[model], datasets=[data])
    frame: pd.DataFrame = clipadapt.records("runs")
    names: NDArray[np.str_] = run.predict(["a.png"])
    features: NDArray[np.float32] = model.encode(["a.png"])
    axes: Axes = run.plot_reliability()
    sets: tuple[tuple[str, ...], ...] = run.predict_sets(["a.png"], 0.8, score="aps").sets
    first: clipadapt.Run = found[0]
    classifier: clipadapt.CLIPClassifier = clipadapt.CLIPClassifier(
        "stitched", classnames={0: "cat"}
    ).fit(["a.png"], [0])
    texts: textsent.SentimentClassifier = textsent.SentimentClassifier(method="svm")

    text_model: textsent.Model = textsent.load_model("minilm")
    text_run: textsent.Run = textsent.fit("lora", text_model, "rotten_tomatoes:offline")
    text_features: NDArray[np.float32] = text_model.encode(["a fine film"], pooling="mean")

    clipadapt.load_model("stitched", precision="fp8")  # type: ignore[arg-type]
    clipadapt.zero_shot("stitched", "openmoji:line", split="dev")  # type: ignore[arg-type]
    wrong = clipadapt.fitt  # type: ignore[attr-defined]
    absent = textsent.zero_shot  # type: ignore[attr-defined]
