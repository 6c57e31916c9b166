"""Load the model of a fit, once for consecutive fits that share it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipadapt.core.api.context import Meter, Services
from clipadapt.core.api.errors import ModelError
from clipadapt.core.api.model import provides
from clipadapt.core.api.progress import Silent
from clipadapt.core.api.registry import MODELS, program
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.hardware import free_device_memory, set_threads
from clipadapt.core.files.identity import require_same

if TYPE_CHECKING:
    from clipadapt.core.api.model import Backbone, ModelIdentity, ModelOptions, ModelProvider
    from clipadapt.core.api.progress import Progress
    from clipadapt.core.api.registry import Resolved
    from clipadapt.core.runs.plan import OpenExperiment


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for one fit.

    Attributes:
        backbone: The model, bound to ``services``; None if the method needs none.
        services: Settings of the fit, and its own meter and flags.
        load_seconds: Seconds that loading the model took, now or for an earlier fit.
    """

    backbone: Backbone | None
    services: Services
    load_seconds: float


class ModelLoader:
    """Loads models and keeps the last one for the next fit."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress: Progress = progress or Silent()
        self._caches = {"on": FeatureCache(), "off": FeatureCache(enabled=False)}
        self._shared = Services(self._caches["off"], self.progress)
        self._key: tuple[Any, ...] | None = None
        self._last: Backbone | None = None
        self._load_seconds = 0.0
        self._threads: int | None = None

    def use_threads(self, opened: OpenExperiment) -> None:
        """Set the threads of the numeric libraries as an experiment needs them."""
        if opened.threads != self._threads:
            self._threads = opened.threads
            set_threads(opened.threads)

    def load(self, opened: OpenExperiment) -> LoadedModel:
        """Return the model of an experiment for one fit.

        Raises:
            ModelError: If the model cannot be loaded, or does not have what the method requires.
        """
        model = opened.experiment.config.model
        if opened.identity is None or model is None:
            return LoadedModel(None, self._services(opened), 0.0)
        backbone = self.backbone(
            MODELS.resolve(model.name, opened.experiment.track),
            model.options,
            opened.identity,
            self._services(opened),
        )
        requires = opened.method.requires
        if requires is not None and not provides(backbone, requires):
            raise ModelError(
                f"the method {opened.experiment.method_name} needs a model that is a "
                f"{requires.__name__}; '{model.name}' is not",
                hint=f"list methods with '{program(opened.experiment.track)} ls methods'",
            )
        services = self._services(opened)  # without the flags and seconds of loading
        return LoadedModel(backbone.with_services(services), services, self._load_seconds)

    def backbone(
        self,
        resolved: Resolved[ModelProvider],
        options: ModelOptions,
        identity: ModelIdentity,
        services: Services,
    ) -> Backbone:
        """Return a model, loaded with ``services`` unless it is the one that was loaded last.

        Args:
            resolved: Its name.
            options: Precision, device and arithmetic.
            identity: Its identity with these options.
            services: Services to load it with; :meth:`Backbone.with_services` binds others to it.

        Raises:
            ModelError: If it cannot be loaded, or its files have changed since it was identified.
        """
        arithmetic = options.arithmetic(identity.device)
        own = (identity.dtype, identity.device, identity.weights_sha256, arithmetic)
        key = (resolved.entry, resolved.argument, *own)
        if key != self._key:
            self._key, self._last = None, None  # free the last model before the next is built
            free_device_memory()
            begun = time.perf_counter()
            with self.progress.track(f"load model {identity.name}", None):
                self._last = resolved.provider.load(resolved.argument, options, services)
            # A model that is not built yet knows the seconds of an earlier time.
            self._load_seconds = time.perf_counter() - begun
            self._load_seconds += getattr(self._last, "load_seconds", 0.0)
            self._key = key
        backbone = self._last
        if backbone is not None:
            require_same(backbone, identity)
        if backbone is None or not hasattr(backbone, "with_services"):
            raise ModelError(
                f"the model '{identity.name}' has no method with_services",
                hint="add it to the plug-in; clipadapt.core.api.model.Backbone describes it",
            )
        return backbone

    def show_on(self, progress: Progress) -> None:
        """Show bars and warnings of the next fits elsewhere."""
        self.progress = progress
        self._shared = replace(self._shared, progress=progress)

    def services(self) -> Services:
        """Return services for encoding outside a fit, through the feature cache."""
        return replace(self._shared, cache=self._caches["on"], meter=Meter(), flags={})

    def _services(self, opened: OpenExperiment) -> Services:
        """Return the services of one fit. A warning that an earlier fit has shown is not shown again."""
        config = opened.experiment.config
        return replace(
            self._shared,
            cache=self._caches[config.store],
            meter=Meter(),
            flags={},
            workers=config.workers,
            threads=opened.threads,
            fast=config.fast == "on",
            compile=config.compile == "on",
        )
