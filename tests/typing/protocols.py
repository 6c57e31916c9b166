"""Checked by mypy, never run: what is shipped meets the protocols, and a wrong signature would not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipadapt.core.api.progress import Silent
from clipadapt.core.cli.progress import on_stderr
from clipadapt.datasets import (
    folder,
    imagenet_sketch,
    imagenette,
    imagenette_sketch,
    openmoji,
    synthetic,
    tiny_imagenet,
)
from clipadapt.datasets import hf as image_hf
from clipadapt.methods import linear_probe, zero_shot
from clipadapt.models import AdapterTunable, DeepPromptTunable, openclip, stitched
from clipadapt.models._adapter import OpenClipModel
from textsent.datasets import csv, hf, rotten_tomatoes
from textsent.methods import tfidf_svm

if TYPE_CHECKING:
    from clipadapt.core.api.data import DatasetProvider
    from clipadapt.core.api.method import (
        Classifier,
        Method,
        OpenVocabulary,
        Selected,
        SelfCalibrated,
    )
    from clipadapt.core.api.model import ModelProvider
    from clipadapt.core.api.progress import Progress

    methods: list[type[Method]] = [zero_shot.METHOD, linear_probe.METHOD, tfidf_svm.METHOD]
    models: list[ModelProvider] = [openclip.MODEL, stitched.MODEL]
    adapters: type[AdapterTunable] = OpenClipModel
    deep_prompts: type[DeepPromptTunable] = OpenClipModel
    datasets: list[DatasetProvider] = [
        folder.DATASET,
        image_hf.DATASET,
        imagenet_sketch.DATASET,
        imagenette.DATASET,
        imagenette_sketch.DATASET,
        tiny_imagenet.DATASET,
        openmoji.DATASET,
        synthetic.DATASET,
        csv.DATASET,
        hf.DATASET,
        rotten_tomatoes.DATASET,
    ]
    classifiers: list[type[Classifier]] = [
        zero_shot.ZeroShotClassifier,
        linear_probe.LinearProbeClassifier,
        tfidf_svm.TfidfSVMClassifier,
    ]
    open_vocabulary: type[OpenVocabulary] = zero_shot.ZeroShotClassifier
    selected: type[Selected] = linear_probe.LinearProbeClassifier
    calibrated: type[SelfCalibrated] = linear_probe.LinearProbeClassifier
    progress: list[Progress] = [Silent(), on_stderr()]
