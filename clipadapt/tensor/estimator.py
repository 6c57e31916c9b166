"""What the scikit-learn estimators of both packages share: parameters, fitting, prediction, pickling.

Inheritance is what scikit-learn asks for; a subclass says how its examples become inputs and which prompts there are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Split, Task
from clipadapt.core.api.errors import ClipAdaptError, DataError, ModelError, did_you_mean
from clipadapt.core.api.method import SelfCalibrated
from clipadapt.core.api.model import ModelOptions, calculating, provides
from clipadapt.core.api.registry import METHODS, MODELS, track_of, tracks
from clipadapt.core.experiments.config import fault_lines
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.files.identity import require_same
from clipadapt.core.scoring.scores import probabilities
from clipadapt.tensor.labels import as_labels, as_weights, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Classifier, Method, MethodConfig

NESTED: Final = "method_params__"
"""Prefix of one hyperparameter of the method, as in a grid."""

_models: dict[tuple[str, str, str], Loaded] = {}
_loading = threading.Lock()


def _has_probabilities(estimator: MethodClassifier) -> bool:
    """Return whether there are probabilities: not for fitted margins without a temperature."""
    fitted: Fitted | None = getattr(estimator, "fitted_", None)
    if fitted is None or fitted.classifier.score_kind != "margin":
        return True
    if fitted.temperature is not None:
        return True
    raise AttributeError(
        f"the scores of {fitted.name} are margins, which are not probabilities; use decision_function, or "
        "sklearn.calibration.CalibratedClassifierCV"
    )


class MethodClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fits any method of one track. There is no validation split, see the subclasses."""

    track: ClassVar[str]

    model: str
    method: str
    method_params: Mapping[str, Any] | None
    random_state: Any

    # ------------------------------------------------------------ of a subclass

    def _inputs(self, X: Any) -> Inputs[Any]:
        """Return examples as inputs.

        Raises:
            DataError: If they are not of an accepted type.
        """
        raise NotImplementedError

    def _prompts(
        self, classes: NDArray[Any], method: Method
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the class names and the templates of the prompts.

        Raises:
            ValueError: If the parameters are not valid.
        """
        del method
        return tuple(str(c) for c in classes.tolist()), ()

    def _warn(self, names: tuple[str, ...], loaded: Loaded | None) -> None:
        """Warn of class names, before the fit."""

    # ------------------------------------------------------------ fit

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the method to examples ``X`` with labels ``y``; return the estimator.

        Args:
            X: ``n`` examples.
            y: ``n`` labels.
            sample_weight: Weights of the examples, for methods that can weigh them; a weight of 0 leaves one out.

        Raises:
            ValueError: If the examples, labels, weights or parameters are not valid.
        """
        with user_errors():
            name, config = self._configured()
            method = METHODS.get(name)(config)
            inputs, noun = self._inputs(X), tracks()[self.track].inputs.removesuffix("s")
            labels = as_labels(y, len(inputs), noun)
            weights = None
            if sample_weight is not None:
                weights = self._weights(sample_weight, len(inputs), name, method)
                kept = np.flatnonzero(weights)
                inputs, weights = inputs.take(kept), weights[kept]
                labels = [labels[i] for i in kept]
            classes, index = encode(labels)
            names, templates = self._prompts(classes, method)
            task = Task(names, templates, Split(inputs, index, names), sample_weight=weights)
            config.check(task)
            found = loaded(self.track, self.model, name, method)
            self._warn(names, found)
            classifier = self._fit(method, task, found)
        sha256 = found.weights_sha256 if found else None
        self.fitted_ = Fitted(name, config, self.model, sha256, classifier)
        self.classes_ = classes
        return self

    def _fit(self, method: Method, task: Task[Any], found: Loaded | None) -> Classifier:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        services = found.backbone.services if found else Services(FeatureCache())
        with scratch_folder() as work:
            context = RunContext(int(seed), work, services)
            backbone = found.backbone if found else None
            with calculating(backbone):
                return method.fit(backbone, task, context)

    def _weights(
        self, sample_weight: ArrayLike, n: int, name: str, method: Method
    ) -> NDArray[np.float64]:
        if not getattr(method, "uses_sample_weight", False):
            raise ValueError(
                f"sample_weight: {name} cannot weigh its training examples with these settings; leave sample_weight "
                f"out, or use method='{type(self)().method}'"
            )
        return as_weights(sample_weight, n)

    # ------------------------------------------------------------ predict

    @property
    def classifier_(self) -> Classifier:
        """The classifier returned by the method's ``fit``."""
        check_is_fitted(self, "classes_")
        return self.fitted_.classifier

    def predict_scores(self, X: Any) -> NDArray[np.float32]:
        """Return the scores of the method, logits or margins, shape ``(n, C)``.

        Raises:
            NotFittedError: If the estimator is not fitted.
            ValueError: If the examples are not valid.
        """
        classifier = self.classifier_
        with user_errors():
            return classifier.predict_scores(self._inputs(X))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the scores, shape ``(n, C)``; for two classes that of the second minus that of the first, ``(n,)``."""
        scores = self.predict_scores(X).astype(np.float64)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the predicted label of each example, shape ``(n,)``."""
        best = self.predict_scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the class probabilities in the order of ``classes_``, shape ``(n, C)``.

        Margins, such as those of an SVM, have none. Of a model with a sigmoid loss (SigLIP) they are one sigmoid per
        class and need not sum to 1.
        """
        scores = self.predict_scores(X).astype(np.float64)
        temperature = self.fitted_.temperature
        return probabilities(
            scores, temperature or 1.0, sigmoid=self.classifier_.score_kind == "sigmoid"
        )

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on examples ``X`` with labels ``y``."""
        predicted = self.predict(X).tolist()
        noun = tracks()[self.track].inputs.removesuffix("s")
        labels = as_labels(y, len(predicted), noun)
        hits = [a == b for a, b in zip(predicted, labels, strict=True)]
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(hits, weights=weights))

    # ------------------------------------------------------------ parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; with ``deep`` those of ``method_params`` also one by one, as ``method_params__C``."""
        params: dict[str, Any] = super().get_params(deep=False)
        given = params["method_params"]
        if deep and isinstance(given, Mapping):
            params |= {f"{NESTED}{key}": value for key, value in given.items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters; ``method_params__C=1.0`` changes one hyperparameter of the method and keeps the others.

        Raises:
            ValueError: If there is no such parameter.
        """
        nested = {k: v for k, v in params.items() if k.startswith(NESTED)}
        super().set_params(**{k: v for k, v in params.items() if k not in nested})
        if not nested:
            return self
        given = self.method_params
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"method_params must be a mapping or None, got {given!r}")
        own = {key.removeprefix(NESTED): value for key, value in nested.items()}
        with user_errors():
            name = METHODS.complete(self.method, self.track)
            known = list(METHODS.get(name).Config.model_fields)
        for key in own:
            if key.partition("__")[0] not in known:
                near = did_you_mean(key, known) or ";"
                raise ValueError(
                    f"Invalid parameter '{NESTED}{key}': {name} has no such hyperparameter{near} it has "
                    f"{', '.join(known)}"
                )
        self.method_params = {**(given or {}), **own}  # the caller's mapping is left as it is
        return self

    def _configured(self) -> tuple[str, MethodConfig]:
        """Return the name and the validated config of the method.

        Raises:
            ValueError: Naming every fault.
        """
        for key in ("model", "method"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key} must be a name, got {getattr(self, key)!r}")  # noqa: TRY004
        name = METHODS.complete(self.method, self.track)
        if track_of(name) != self.track:
            raise ValueError(
                f"the method {name} is not for {tracks()[self.track].inputs}; use a method of the track {self.track}"
            )
        given = self.method_params
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"method_params must be a mapping or None, got {given!r}")
        config_class = METHODS.get(name).Config
        try:
            return name, config_class.model_validate(dict(given or {}))
        except ValidationError as err:
            faults = "\n".join(fault_lines(err, config_class, "method_params."))
            raise ValueError(f"method_params of {name} are not valid:\n{faults}") from None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and the sha256 of its stored weights."""

    backbone: Any
    weights_sha256: str


def loaded(track: str, model: str, name: str, method: Method) -> Loaded | None:
    """Return the model of a method, shared in this process by its weights; None if the method needs no model.

    Args:
        track: Track of the model.
        model: Name of the model.
        name: Name of the method.
        method: The method.

    Raises:
        ModelError: If the model is not available, or does not have the capability that the method requires.
    """
    if method.requires is None:
        return None
    resolved = MODELS.resolve(model, track)
    options = ModelOptions(precision="fp32")  # as in the papers' recipes
    with _loading:
        identity = resolved.provider.identify(resolved.argument, options)
        sha256 = identity.weights_sha256
        if (track, model, sha256) not in _models:
            services = Services(FeatureCache())
            backbone = resolved.provider.load(resolved.argument, options, services)
            require_same(backbone, identity)
            _models[track, model, sha256] = Loaded(backbone, sha256)
        found = _models[track, model, sha256]
    if not provides(found.backbone, method.requires):
        raise ModelError(
            f"the method {name} needs a model that is a {method.requires.__name__}; '{model}' is not"
        )
    return found


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted classifier with everything needed to load it again; its copies and pickles do not contain the model."""

    name: str
    config: MethodConfig
    model: str
    weights_sha256: str | None
    classifier: Classifier

    @property
    def temperature(self) -> float | None:
        """The classifier's own softmax temperature, or None."""
        own = self.classifier
        return own.temperature if isinstance(own, SelfCalibrated) else None

    def __reduce__(self) -> tuple[Any, ...]:
        with scratch_folder() as root:
            self.classifier.save(root)
            files = {
                p.relative_to(root).as_posix(): p.read_bytes()
                for p in root.rglob("*")
                if p.is_file()
            }
        config = self.config.model_dump(mode="json")
        return _restore, (self.name, config, self.model, self.weights_sha256, files)


def _restore(
    name: str, config: dict[str, Any], model: str, weights: str | None, files: dict[str, bytes]
) -> Fitted:
    """Load a classifier from its saved files.

    Raises:
        ModelError: If the model has different weights than at fitting time.
    """
    method_class = METHODS.get(name)
    valid = method_class.Config.model_validate(config)
    method = method_class(valid)
    found = loaded(track_of(name), model, name, method)
    if found is not None and found.weights_sha256 != weights:
        raise ModelError(f"the estimator was fitted with different weights of '{model}'")
    with scratch_folder() as folder:
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        classifier = method.load(folder, found.backbone if found else None)
    return Fitted(name, valid, model, weights, classifier)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Convert user errors to ValueError, as scikit-learn raises them."""
    try:
        yield
    except DataError as err:
        raise ValueError(err.problem) from err  # the hint is about a command-line option
    except ClipAdaptError as err:
        raise ValueError(str(err)) from err
