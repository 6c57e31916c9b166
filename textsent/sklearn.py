"""scikit-learn interface: a text classifier that fits any method of textsent.

>>> from textsent import SentimentClassifier
>>> from sklearn.model_selection import GridSearchCV
>>> grid = {"method_params__C": [0.1, 1.0]}
>>> search = GridSearchCV(SentimentClassifier(), grid).fit(texts, labels)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from clipadapt.tensor.estimator import MethodClassifier
from textsent.datasets._given import text_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.api.data import Inputs


class SentimentClassifier(MethodClassifier):
    """Classify texts with one of the methods of textsent.

    Texts are a list, an array or a series of ``str``. A model is loaded once per process and shared by all estimators;
    frozen features are cached. There is no validation split: methods that select a hyperparameter or an epoch on val
    use the given value, or the last epoch.

    A pickled estimator contains the trained parameters but not the model, which is loaded again when unpickling.

    Args:
        model: Any name that ``--model`` accepts; methods without a model, such as ``tfidf_svm``, do not use it.
        method: Any name listed by ``textsent ls methods``, with or without ``text/``.
        method_params: Hyperparameters of the method that differ from its defaults; in a grid also one by one, as
            ``method_params__C``.
        random_state: Seed, or a generator from which it is drawn.

    Attributes:
        classes_: The distinct labels, sorted.
    """

    track: ClassVar[str] = "text"

    def __init__(
        self,
        model: str = "minilm",
        method: str = "logreg",
        method_params: Mapping[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.method = method
        self.method_params = method_params
        self.random_state = random_state

    def _inputs(self, X: Any) -> Inputs[Any]:
        return text_inputs(X)
