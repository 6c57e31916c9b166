"""scikit-learn interface: an image classifier that fits any method for adapting CLIP.

>>> from clipadapt import CLIPClassifier
>>> from sklearn.model_selection import GridSearchCV
>>> grid = {"method_params": [{"C": 0.1}, {"C": 1.0}]}
>>> search = GridSearchCV(CLIPClassifier(), grid).fit(paths, labels)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import ValidationError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from clipadapt.core.api.context import RunContext, Services
from clipadapt.core.api.data import Inputs, Split, Task, digest
from clipadapt.core.api.errors import ClipAdaptError, DataError, ModelError
from clipadapt.core.api.method import SelfCalibrated
from clipadapt.core.api.model import ModelOptions
from clipadapt.core.api.registry import METHODS, MODELS, track_of
from clipadapt.core.data.classnames import duplicate_names, token_warnings
from clipadapt.core.experiments.config import fault_lines
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.files.atomic import scratch_folder
from clipadapt.core.files.identity import require_same
from clipadapt.core.scoring.scores import probabilities
from clipadapt.datasets._decode import opened_rgb
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.datasets._images import ImageFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from clipadapt.core.api.method import Classifier, Method, MethodConfig

ACCEPTED = "PIL images, paths of image files, or a uint8 array of shape (n, height, width, 3)"

_models: dict[tuple[str, str], _Loaded] = {}
_loading = threading.Lock()


class CLIPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify images with CLIP and one of the methods that adapt it.

    Images are PIL images, paths of image files, or a uint8 array ``(n, height, width, 3)``. The class names in prompts
    are the labels as text, with ``_`` replaced by a space. A model is loaded once per process and shared by all
    estimators; frozen features are cached. There is no validation split: methods that select a hyperparameter on val
    use its given value, and the probabilities are calibrated only if the method provides a temperature.

    A transductive method predicts all images of a call together, an online one in their order.

    A pickled estimator contains the trained parameters but not the model, which is loaded again when unpickling.

    Args:
        model: Any name that ``--model`` accepts.
        method: Any name listed by ``clipadapt ls methods``, with or without ``clip/``.
        method_params: Hyperparameters of the method that differ from its defaults.
        random_state: Seed, or a generator from which it is drawn.

    Attributes:
        classes_: The distinct labels, sorted.
    """

    def __init__(
        self,
        model: str = "stitched",
        method: str = "linear_probe",
        method_params: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.method = method
        self.method_params = method_params
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> CLIPClassifier:
        """Fit the method to images ``X`` with labels ``y``; return the estimator.

        Raises:
            ValueError: If the images, labels or parameters are not valid.
        """
        with _user_errors():
            name, config = self._method()
            method = METHODS.get(name)(config)
            inputs = _inputs(X)
            classes, labels = _encode(y, len(inputs))
            names = tuple(str(c).replace("_", " ") for c in classes.tolist())
            for pair in duplicate_names(names)[:1]:
                warnings.warn(
                    f"no prompt can distinguish the classes '{pair[0]}' and '{pair[1]}'",
                    stacklevel=2,
                )
            task = Task(names, PHOTO_TEMPLATES, Split(inputs, labels, names))
            config.check(task)
            loaded = _loaded(self.model, name, method)
            if loaded is not None:
                for why in token_warnings(loaded.backbone, names).values():
                    warnings.warn(why, stacklevel=2)
            services = loaded.backbone.services if loaded else Services(FeatureCache())
            seed = self.random_state
            if not isinstance(seed, int | np.integer):
                seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
            with scratch_folder() as work:
                context = RunContext(int(seed), work, services)
                classifier = method.fit(loaded.backbone if loaded else None, task, context)
        weights = loaded.weights_sha256 if loaded else None
        self.fitted_ = _Fitted(name, config, self.model, weights, classifier)
        self.classes_ = classes
        return self

    @property
    def classifier_(self) -> Classifier:
        """The classifier returned by the method's ``fit``."""
        check_is_fitted(self, "classes_")
        return self.fitted_.classifier

    def predict_scores(self, X: Any) -> NDArray[np.float32]:
        """Return the scores of the method, logits or margins, shape ``(n, C)``.

        Raises:
            NotFittedError: If the estimator is not fitted.
            ValueError: If the images are not valid.
        """
        classifier = self.classifier_
        with _user_errors():
            return classifier.predict_scores(_inputs(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the predicted label of each image, shape ``(n,)``."""
        best = self.predict_scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the class probabilities in the order of ``classes_``, shape ``(n, C)``.

        Of a model with a sigmoid loss (SigLIP) they are one sigmoid per class and need not sum to 1.
        """
        scores = self.predict_scores(X).astype(np.float64)
        own = self.classifier_
        temperature = own.temperature if isinstance(own, SelfCalibrated) else None
        return probabilities(scores, temperature or 1.0, sigmoid=own.score_kind == "sigmoid")

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on images ``X`` with labels ``y``."""
        predicted = self.predict(X).tolist()
        labels = _labels(y, len(predicted))
        hits = [a == b for a, b in zip(predicted, labels, strict=True)]
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(hits, weights=weights))

    def _method(self) -> tuple[str, MethodConfig]:
        for key in ("model", "method"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"{key} must be a name, got {getattr(self, key)!r}")  # noqa: TRY004
        name = METHODS.complete(self.method, "clip")
        if track_of(name) != "clip":
            raise ValueError(f"the method {name} is not for images; use a method of the track clip")
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


class _Images(Sequence[Image.Image]):
    """The given images, converted to RGB lazily."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._files = ImageFiles(Path(), [os.fspath(i) if _is_path(i) else "" for i in items])

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Images(self._items[index])
        item = self._items[index]
        if _is_path(item):
            return self._files[index]
        if isinstance(item, Image.Image):
            return opened_rgb(item, f"image {index}")
        return Image.fromarray(item)

    def digest(self, index: int) -> bytes:
        """Return the hash of one image's content, or of the file's bytes if it is a file."""
        return (
            self._files.digest(index) if _is_path(self._items[index]) else digest([self[index]], 0)
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model and the sha256 of its stored weights."""

    backbone: Any
    weights_sha256: str


def _loaded(model: str, name: str, method: Method) -> _Loaded | None:
    """Return the model of a method, shared in this process by its weights; None if the method needs no model.

    Raises:
        ModelError: If the model is not available, or does not have the capability that the method requires.
    """
    if method.requires is None:
        return None
    resolved = MODELS.resolve(model, "clip")
    options = ModelOptions(precision="fp32")  # as in the papers' recipes
    with _loading:
        identity = resolved.provider.identify(resolved.argument, options)
        sha256 = identity.weights_sha256
        if (model, sha256) not in _models:
            services = Services(FeatureCache())
            backbone = resolved.provider.load(resolved.argument, options, services)
            require_same(backbone, identity)
            _models[model, sha256] = _Loaded(backbone, sha256)
        found = _models[model, sha256]
    if not isinstance(found.backbone, method.requires):
        raise ModelError(
            f"the method {name} needs a model that is a {method.requires.__name__}; '{model}' is not"
        )
    return found


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A fitted classifier with everything needed to load it again; its copies and pickles do not contain the model."""

    name: str
    config: MethodConfig
    model: str
    weights_sha256: str | None
    classifier: Classifier

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
) -> _Fitted:
    """Load a classifier from its saved files.

    Raises:
        ModelError: If the model has different weights than at fitting time.
    """
    method_class = METHODS.get(name)
    valid = method_class.Config.model_validate(config)
    method = method_class(valid)
    loaded = _loaded(model, name, method)
    if loaded is not None and loaded.weights_sha256 != weights:
        raise ModelError(f"the estimator was fitted with different weights of '{model}'")
    with scratch_folder() as folder:
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        classifier = method.load(folder, loaded.backbone if loaded else None)
    return _Fitted(name, valid, model, weights, classifier)


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Convert user errors to ValueError, as scikit-learn raises them."""
    try:
        yield
    except DataError as err:
        raise ValueError(err.problem) from err  # the hint is about a command-line option
    except ClipAdaptError as err:
        raise ValueError(str(err)) from err


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _inputs(X: Any) -> Inputs[Image.Image]:
    """Return images as the inputs of a method.

    Raises:
        ValueError: If they are not of an accepted type.
    """
    if isinstance(X, str | bytes | os.PathLike | Image.Image):  # ValueError, as scikit-learn raises
        raise ValueError(f"expected several images, got one {type(X).__name__}")  # noqa: TRY004
    if not isinstance(X, np.ndarray) and getattr(X, "ndim", 1) != 1:
        raise ValueError(f"expected {ACCEPTED}; got a {type(X).__name__} of shape {X.shape}")
    items: Any
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU":
        if X.dtype != np.uint8 or X.ndim != 4 or X.shape[3] != 3:
            raise ValueError(f"expected {ACCEPTED}; got an array of {X.dtype} and shape {X.shape}")
        items = X
    else:
        try:
            items = list(X)
        except TypeError:
            raise ValueError(f"expected {ACCEPTED}; got {type(X).__name__}") from None
    if len(items) == 0:
        raise ValueError("found no images (n_samples=0) while a minimum of 1 is required")
    for i, item in enumerate(items):
        array = isinstance(item, np.ndarray)
        if array and (item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3):
            raise ValueError(
                f"image {i}: expected a uint8 array of shape (height, width, 3), "
                f"got {item.dtype} {item.shape}"
            )
        if not (array or _is_path(item) or isinstance(item, Image.Image)):
            raise ValueError(f"image {i}: expected {ACCEPTED}; got {type(item).__name__}")
    return Inputs(_Images(items), tuple(map(str, range(len(items)))))


def _labels(y: Any, n: int) -> list[Any]:
    """Return ``n`` labels as Python values.

    Raises:
        ValueError: If there are not ``n`` labels, a label is not a single value, or one is missing.
    """
    if y is None or isinstance(y, str | bytes | Mapping | AbstractSet):  # not a sequence of labels
        raise ValueError(f"expected one label per image, got y={y!r:.80}")
    if hasattr(y, "detach"):  # a tensor, which may need gradients or be on another device
        y = y.detach().cpu().numpy()
    array = y if isinstance(y, np.ndarray) else getattr(y, "to_numpy", lambda: None)()
    if array is None and hasattr(y, "__array__"):
        array = np.asarray(y)
    if array is not None and array.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {array.shape} instead")
    labels = list(y) if array is None else array.tolist()
    # Convert scalars of numpy and torch.
    labels = [v.item() if getattr(v, "ndim", None) == 0 else v for v in labels]
    missing = [i for i, value in enumerate(labels) if _is_missing(value)]
    if missing:
        raise ValueError(
            f"Input y contains missing values: {labels[missing[0]]!r} at position {missing[0]} "
            f"(cases: {len(missing)} of {len(labels)})"
        )
    if len(labels) != n:
        raise ValueError(
            f"found input variables with inconsistent numbers of samples: {[n, len(labels)]}"
        )
    return labels


def _is_missing(value: Any) -> bool:
    """Return whether a label is None, NaN, NaT or pandas.NA, for which comparisons are undefined."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


def _encode(y: Any, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the sorted distinct labels, shape ``(C,)``, and the index of each example's label.

    Raises:
        ValueError: If the labels are not classes, or all equal.
    """
    labels = _labels(y, n)
    for value in labels:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(f"Unknown label type: {value!r} is a number, not a class")
    try:
        distinct = set(labels)
    except TypeError as err:
        raise ValueError(f"labels must be hashable: {err}") from None
    if len(distinct) < 2:
        raise ValueError(f"labels of at least two classes are required, got only {labels[0]!r}")
    try:
        ordered = sorted(distinct)
    except TypeError:  # labels of several types: use an order that does not depend on the hash
        ordered = sorted(distinct, key=lambda v: (type(v).__name__, str(v)))
    index = {value: i for i, value in enumerate(ordered)}
    classes: NDArray[Any] = np.empty(len(ordered), dtype=object)
    classes[:] = ordered
    if len({type(v) for v in ordered}) == 1 and isinstance(ordered[0], str | bool | int | float):
        classes = np.array(ordered)
    return classes, np.array([index[v] for v in labels], dtype=np.int64)
