"""scikit-learn interface: an image classifier that fits any method for adapting CLIP.

>>> from clipadapt import CLIPClassifier
>>> from sklearn.model_selection import GridSearchCV
>>> grid = {"method_params__C": [0.1, 1.0]}
>>> search = GridSearchCV(CLIPClassifier(), grid).fit(paths, labels)  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.core.api.registry import template_sets
from clipadapt.core.data.classnames import duplicate_names, token_warnings
from clipadapt.core.data.labelled import is_number
from clipadapt.datasets._given import image_inputs
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES
from clipadapt.tensor.estimator import MethodClassifier

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs
    from clipadapt.core.api.method import Method
    from clipadapt.tensor.estimator import Loaded


class CLIPClassifier(MethodClassifier):
    """Classify images with CLIP and one of the methods that adapt it.

    Images are PIL images, paths of image files, uint8 arrays ``(height, width, 3)`` or tensors ``(3, height, width)``,
    in a list or as one array or tensor. A model is loaded once per process and shared by all estimators; frozen
    features are cached. There is no validation split: methods that select a hyperparameter on val use its given value,
    and the probabilities are calibrated only if the method provides a temperature.

    A transductive method predicts all images of a call together, an online one in their order.

    A pickled estimator contains the trained parameters but not the model, which is loaded again when unpickling.

    Args:
        model: Any name that ``--model`` accepts.
        method: Any name listed by ``clipadapt ls methods``, with or without ``clip/``.
        method_params: Hyperparameters of the method that differ from its defaults; in a grid also one by one, as
            ``method_params__C``.
        classnames: Class names in prompts: a mapping from label to name, or one name for each of the sorted labels.
            None takes the labels as text, with ``_`` replaced by a space; labels that are not text are refused by
            methods that read class names.
        templates: ``7``, ``80``, a template such as ``a photo of a {}.``, or several; None is ``a photo of a {}.``.
        random_state: Seed, or a generator from which it is drawn.

    Attributes:
        classes_: The distinct labels, sorted.
    """

    track: ClassVar[str] = "clip"

    def __init__(
        self,
        model: str = "stitched",
        method: str = "linear_probe",
        method_params: Mapping[str, Any] | None = None,
        classnames: Mapping[Any, str] | Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.method = method
        self.method_params = method_params
        self.classnames = classnames
        self.templates = templates
        self.random_state = random_state

    def _inputs(self, X: Any) -> Inputs[Any]:
        return image_inputs(X)

    def _prompts(
        self, classes: NDArray[Any], method: Method
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _classnames(self.classnames, classes.tolist(), method), _templates(self.templates)

    def _warn(self, names: tuple[str, ...], loaded: Loaded | None) -> None:
        for pair in duplicate_names(names)[:1]:
            warnings.warn(
                f"no prompt can distinguish the classes '{pair[0]}' and '{pair[1]}'", stacklevel=3
            )
        if loaded is not None:
            for why in token_warnings(loaded.backbone, names).values():
                warnings.warn(why, stacklevel=3)


def _classnames(given: Any, classes: Sequence[Any], method: Method) -> tuple[str, ...]:
    """Return the class names in prompts.

    Raises:
        ValueError: If they do not fit the classes, or there are only labels that mean nothing in a prompt.
    """
    if given is None:
        mute = [c for c in classes if not isinstance(c, str) or is_number(c)]
        if mute and getattr(method, "reads_classnames", True):
            raise ValueError(
                f"the label {mute[0]!r} means nothing in a prompt, and the method reads class names: name the classes "
                f"with classnames=, for example classnames={{{mute[0]!r}: 'tabby cat', ...}}"
            )
        return tuple(str(c).replace("_", " ") for c in classes)
    if isinstance(given, Mapping):
        without = [c for c in classes if c not in given]
        if without:
            raise ValueError(f"classnames has no name for the label {without[0]!r}")
        names = [given[c] for c in classes]
    elif isinstance(given, str) or not hasattr(given, "__len__"):
        raise ValueError(f"classnames must be a mapping, a list of names or None, got {given!r}")
    elif len(given) != len(classes):
        raise ValueError(
            f"classnames has {len(given)} names, and there are {len(classes)} classes: give one name for each of the "
            "sorted labels"
        )
    else:
        names = list(given)
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(f"classnames must be texts that are not empty, got {wrong[0]!r}")
    return tuple(map(str, names))


def _templates(given: Any) -> tuple[str, ...]:
    """Return the templates of the prompts.

    Raises:
        ValueError: If one does not have exactly one ``{}``.
    """
    if given is None:
        return PHOTO_TEMPLATES
    sets = template_sets()
    if isinstance(given, str) and given in sets:
        return sets[given]
    several = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    wrong = [t for t in several if not isinstance(t, str) or t.count("{}") != 1]
    if wrong or not several:
        got = repr(wrong[0]) if wrong else "none"
        raise ValueError(
            f"templates must be {', '.join(sets)}, or templates with one '{{}}' for the class name, got {got}"
        )
    return tuple(several)
