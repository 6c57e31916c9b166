"""Linear SVM on TF-IDF n-grams."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from clipadapt.core.api.errors import DataError
from clipadapt.core.api.limits import Examples, Iterations, Penalty
from clipadapt.core.api.method import MethodConfig, require_format
from clipadapt.core.files import saved
from textsent.methods import _task, _tfidf

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.context import RunContext
    from clipadapt.core.api.data import Inputs, Task
    from clipadapt.core.api.method import Exported, ScoreKind


class TfidfSVMConfig(MethodConfig):
    """Hyperparameters of ``text/tfidf_svm``; all others have scikit-learn's defaults.

    Attributes:
        C: Inverse strength of the L2 penalty.
        max_ngram: Longest word n-gram counted.
        min_df: Minimum number of training texts that contain an n-gram.
        sublinear_tf: Count ``1 + ln(tf)`` instead of ``tf``.
        max_iter: Maximum number of passes of the solver.
    """

    C: Penalty = 1.0
    max_ngram: int = Field(default=2, ge=1, le=5)
    min_df: Examples = 1
    sublinear_tf: bool = False
    max_iter: Iterations = 10_000


class TfidfSVM:
    """L2-regularised linear SVM (squared hinge loss), one against rest.

    References:
        S. Wang and C. Manning, "Baselines and Bigrams: Simple, Good Sentiment and Topic
        Classification", ACL 2012.
    """

    Config: ClassVar[type[MethodConfig]] = TfidfSVMConfig
    version: ClassVar[int] = 1
    requires: ClassVar[type | None] = None
    open_vocabulary: ClassVar[bool] = False
    uses_sample_weight: ClassVar[bool] = True

    def __init__(self, config: TfidfSVMConfig) -> None:
        self.config = config

    def fit(self, backbone: None, task: Task[str], ctx: RunContext) -> TfidfSVMClassifier:  # noqa: ARG002
        """Fit on ``task.train``; ``task.val`` is not used. The seed has no effect.

        Raises:
            DataError: If train has only one class, or no n-gram is left.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        config = self.config
        train, _ = _task.labelled(task, "tfidf_svm")
        seen = np.unique(train.labels)
        vectorizer = _vectorizer(config.max_ngram, config.sublinear_tf, config.min_df)
        try:
            counts = vectorizer.fit_transform(list(train.inputs.examples))  # sparse (n, V)
        except ValueError as err:
            raise DataError(
                f"tfidf_svm finds no n-gram in the {len(train)} training texts with min_df={config.min_df} ({err})",
                hint="a word has at least two letters or digits; use longer texts or a lower method.min_df",
            ) from None
        # random_state orders the coordinates of the dual solver; it is fixed so that equal data give equal weights.
        svm = LinearSVC(C=config.C, max_iter=config.max_iter, random_state=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            svm.fit(counts, train.labels, sample_weight=task.sample_weight)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            ctx.progress.note(
                f"warning: tfidf_svm did not converge in {config.max_iter} passes; raise method.max_iter"
            )
        coef, intercept = _for_all_classes(svm.coef_, svm.intercept_, seen, len(task.classnames))
        return TfidfSVMClassifier(
            task.classnames,
            tuple(vectorizer.get_feature_names_out().tolist()),
            vectorizer.idf_,
            coef,
            intercept,
            config.max_ngram,
            config.sublinear_tf,
        )

    def load(self, directory: Path, backbone: None) -> TfidfSVMClassifier:  # noqa: ARG002
        """Return the classifier saved in ``directory``.

        Raises:
            RecordError: If a file is missing or damaged.
        """
        settings = ("classnames", "vocabulary", "max_ngram", "sublinear_tf")
        facts = saved.load_facts(directory, settings)
        classnames, vocabulary, max_ngram, sublinear_tf = (facts[key] for key in settings)
        rows, columns = 1 if len(classnames) == 2 else len(classnames), len(vocabulary)
        shapes = {"idf": (columns,), "coef": (rows, columns), "intercept": (rows,)}
        arrays = saved.load_arrays(directory, shapes)
        return TfidfSVMClassifier(
            tuple(classnames),
            tuple(vocabulary),
            arrays["idf"],
            arrays["coef"],
            arrays["intercept"],
            max_ngram=max_ngram,
            sublinear_tf=sublinear_tf,
        )


@dataclass(frozen=True, slots=True)
class TfidfSVMClassifier:
    """One hyperplane per class over TF-IDF n-grams, or a single one for two classes.

    Attributes:
        classnames: ``C`` class names.
        vocabulary: ``V`` n-grams, in the order of the columns.
        idf: Inverse document frequency of every n-gram, shape ``(V,)``.
        coef: Normals, shape ``(C, V)``, or ``(1, V)`` for two classes, positive for the second.
        intercept: Offsets, shape ``(C,)`` or ``(1,)``.
        max_ngram: Longest word n-gram counted.
        sublinear_tf: Whether ``1 + ln(tf)`` is counted.
        score_kind: The scores are signed margins.
        export_formats: Arrays and vocabulary for scikit-learn, or a graph from words to probabilities.
    """

    classnames: tuple[str, ...]
    vocabulary: tuple[str, ...]
    idf: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    max_ngram: int
    sublinear_tf: bool
    score_kind: ClassVar[ScoreKind] = "margin"
    export_formats: ClassVar[tuple[str, ...]] = _tfidf.FORMATS

    @property
    def n_trainable_params(self) -> int:
        """Weights and offsets; idf values are counts, not parameters."""
        return self.coef.size + self.intercept.size

    def predict_scores(self, inputs: Inputs[Any]) -> NDArray[np.float32]:
        """Return margins of shape ``(n, C)``; for two classes ``[-m, m]``, ``m`` being scikit-learn's."""
        vectorizer = _vectorizer(self.max_ngram, self.sublinear_tf, 1, self.vocabulary)
        vectorizer.idf_ = self.idf
        counts = vectorizer.transform(list(inputs.examples))  # sparse (n, V)
        margins = np.asarray(counts @ self.coef.T) + self.intercept  # (n, C), or (n, 1)
        if len(self.classnames) == 2:
            margins = np.concatenate([-margins, margins], axis=1)
        return margins.astype(np.float32)

    def save(self, directory: Path) -> None:
        """Write vocabulary and settings as JSON, the arrays as safetensors."""
        arrays = {"idf": self.idf, "coef": self.coef, "intercept": self.intercept}
        facts = {
            "classnames": self.classnames,
            "max_ngram": self.max_ngram,
            "sublinear_tf": self.sublinear_tf,
            "vocabulary": self.vocabulary,
        }
        saved.save(directory, arrays, facts)

    def export(
        self,
        form: str,
        path: Path,
        /,
        *,
        temperature: float | None = None,
        output: Path | None = None,  # noqa: ARG002
    ) -> Exported:
        """Write arrays and vocabulary, or an ONNX graph.

        Raises:
            UnknownNameError: If there is no such format.
            ModelError: If the graph gives other probabilities.
        """
        require_format(form, self.export_formats)
        return _tfidf.export(form, path, self, temperature)


def _vectorizer(
    max_ngram: int, sublinear_tf: bool, min_df: int, vocabulary: tuple[str, ...] | None = None
) -> Any:
    """Return the vectorizer that both fitting and predicting use."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, max_ngram), sublinear_tf=sublinear_tf, min_df=min_df, vocabulary=vocabulary
    )


def _for_all_classes(
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    seen: NDArray[np.int64],
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add the hyperplanes of classes without training examples.

    The SVM of such a class has only negative examples; its optimum is zero weights and an offset of -1.
    """
    if len(seen) == n_classes:
        return coef, intercept
    if len(seen) == 2:
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    full_coef, full_intercept = np.zeros((n_classes, coef.shape[1])), np.full(n_classes, -1.0)
    full_coef[seen], full_intercept[seen] = coef, intercept
    return full_coef, full_intercept


METHOD = TfidfSVM
