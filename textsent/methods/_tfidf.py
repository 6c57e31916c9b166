"""Export of a linear SVM on TF-IDF n-grams: arrays and vocabulary, or a graph from words to probabilities."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from clipadapt.core.api.method import Exported
from clipadapt.core.files.atomic import write_json
from clipadapt.core.scoring.scores import probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from clipadapt.core.api.data import Inputs

FORMATS: Final = ("classifier", "onnx")
FILE: Final = "classifier.safetensors"
FACTS: Final = "classifier.json"
ONNX_FACTS: Final = "onnx.json"
FORMAT_VERSION: Final = 1
"""Increased when the meaning of the files changes."""
TOKEN: Final = r"(?u)\b\w\w+\b"  # noqa: S105
"""scikit-learn's pattern of a word."""
TEXTS: Final = ("a fine film", "a dull one", "", "zzz")
"""Texts that the graph is compared on, besides n-grams of the vocabulary."""
OPSET: Final = 18
IR_VERSION: Final = 9


class Fitted(Protocol):
    """The part of a classifier that an export reads, see ``text/tfidf_svm``."""

    @property
    def classnames(self) -> tuple[str, ...]: ...
    @property
    def vocabulary(self) -> tuple[str, ...]: ...
    @property
    def idf(self) -> NDArray[np.float64]: ...
    @property
    def coef(self) -> NDArray[np.float64]: ...
    @property
    def intercept(self) -> NDArray[np.float64]: ...
    @property
    def max_ngram(self) -> int: ...
    @property
    def sublinear_tf(self) -> bool: ...
    def predict_scores(self, inputs: Inputs[Any], /) -> NDArray[np.float32]: ...


def export(form: str, path: Path, fitted: Fitted, temperature: float | None) -> Exported:
    """Write a classifier.

    Args:
        form: ``classifier`` (safetensors and JSON, for scikit-learn), or ``onnx``.
        path: The folder.
        fitted: The classifier.
        temperature: Temperature of the run, or None.

    Raises:
        ClipAdaptError: If a library is missing.
        ModelError: If the graph gives other probabilities.
    """
    path.mkdir(parents=True, exist_ok=True)
    coef, intercept = fitted.coef, fitted.intercept
    if len(coef) == 1:  # one hyperplane for two classes, positive for the second
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    if form == "onnx":
        return _as_onnx(path, fitted, coef, intercept, temperature)
    from safetensors.numpy import save_file

    arrays = {"idf": fitted.idf, "coef": coef, "intercept": intercept}
    names = json.dumps(list(fitted.classnames), ensure_ascii=False)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path / FILE, metadata={"classnames": names})
    facts = {
        "format_version": FORMAT_VERSION,
        "classnames": list(fitted.classnames),
        "max_ngram": fitted.max_ngram,
        "sublinear_tf": fitted.sublinear_tf,
        "temperature": temperature,
        "vocabulary": list(fitted.vocabulary),
    }
    write_json(path / FACTS, facts)
    return Exported(
        SNIPPET,
        (),
        {
            "Features": f"tf-idf of {len(fitted.vocabulary)} word n-grams up to length {fitted.max_ngram}",
            "Scores": f"`x @ a['coef'].T + a['intercept']`, with the arrays of {FILE} as `a`",
            "Probabilities": f"softmax of the scores divided by the temperature in {FACTS}",
        },
    )


def _as_onnx(
    path: Path,
    fitted: Fitted,
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64],
    temperature: float | None,
) -> Exported:
    from clipadapt.core.api.data import Inputs
    from clipadapt.tensor import onnx

    onnx.require()
    import onnx as library

    divisor = temperature or 1.0
    library.save(graph(fitted, coef / divisor, intercept / divisor), str(path / onnx.FILE))
    some = fitted.vocabulary[:: max(1, len(fitted.vocabulary) // 50)]
    texts = (*TEXTS, " ".join(some), *some[:3])
    scores = fitted.predict_scores(Inputs(texts, tuple(map(str, range(len(texts))))))
    expected = probabilities(scores.astype(np.float64), divisor)
    found = onnx.check(path / onnx.FILE, {"words": words(texts)}, expected, "scikit-learn")
    names = list(fitted.classnames)
    write_json(path / ONNX_FACTS, {"classnames": names, "token_pattern": TOKEN})
    facts = {
        "textsent_version": version("clipadapt"),
        "classnames": json.dumps(names, ensure_ascii=False),
        "temperature": json.dumps(temperature),
        "token_pattern": TOKEN,
        "max_difference_from_sklearn": f"{found:.3g}",
    }
    return Exported(
        ONNX_SNIPPET,
        (),
        {
            "Input": "`words`, strings of shape (n, length): lower-case words, empty strings at the end",
            "Output": f"`{onnx.OUTPUT}`, shape (n, {len(names)}): a softmax over the classes, temperature included",
            "Class names": f"in {ONNX_FACTS} and in the metadata of {onnx.FILE}",
            "Checked": f"onnxruntime differs from scikit-learn by at most {found:.1e} in a probability",
        },
        onnx.stamp(path, facts),
    )


def words(texts: Sequence[str]) -> NDArray[np.object_]:
    """Return the words of ``n`` texts, shape ``(n, L)``, padded with empty strings."""
    rows = [re.findall(TOKEN, text.lower()) for text in texts]
    length = max([1, *map(len, rows)])
    return np.array([row + [""] * (length - len(row)) for row in rows], dtype=object)


def graph(fitted: Fitted, coef: NDArray[np.float64], intercept: NDArray[np.float64]) -> Any:
    """Return an ONNX model from words ``(n, L)`` to probabilities ``(n, C)``.

    Args:
        fitted: The classifier: vocabulary, idf and settings.
        coef: Normals divided by the temperature, shape ``(C, V)``.
        intercept: Offsets divided by the temperature, shape ``(C,)``.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    from clipadapt.tensor.onnx import OUTPUT

    node: Callable[..., Any] = helper.make_node
    term = "counts"
    nodes = [node("TfIdfVectorizer", ["words"], ["counts"], **_ngrams(fitted))]
    if fitted.sublinear_tf:
        # 1 + ln(tf) where an n-gram occurs: the logarithm of at least one, times whether there is a count.
        nodes += [
            node("Max", ["counts", "one"], ["at_least_one"]),
            node("Log", ["at_least_one"], ["logarithm"]),
            node("Min", ["counts", "one"], ["occurs"]),
            node("Add", ["logarithm", "occurs"], ["sublinear"]),
        ]
        term = "sublinear"
    nodes += [
        node("Mul", [term, "idf"], ["weighted"]),
        node("ReduceL2", ["weighted", "columns"], ["length"], keepdims=1),
        node("Max", ["length", "least"], ["divisor"]),  # a text without known n-grams
        node("Div", ["weighted", "divisor"], ["x"]),
        node("Gemm", ["x", "coef", "intercept"], ["scores"], transB=1),
        node("Softmax", ["scores"], [OUTPUT], axis=1),
    ]
    arrays = {
        "idf": fitted.idf.astype(np.float32),
        "coef": coef.astype(np.float32),
        "intercept": intercept.astype(np.float32),
        "one": np.ones(1, dtype=np.float32),
        "least": np.full(1, np.finfo(np.float32).tiny),
        "columns": np.array([1]),
    }
    if not fitted.sublinear_tf:
        del arrays["one"]
    made = helper.make_graph(
        nodes,
        "tfidf_svm",
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["n", "length"])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(coef)])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION)
    checker.check_model(model)
    return model


def _ngrams(fitted: Fitted) -> dict[str, Any]:
    """Return the attributes of the operator that counts the n-grams: the vocabulary, shorter n-grams first."""
    split = [ngram.split(" ") for ngram in fitted.vocabulary]
    columns = sorted(range(len(split)), key=lambda i: len(split[i]))
    longest = len(split[columns[-1]])
    sizes = [sum(len(ngram) == n for ngram in split) * n for n in range(1, longest)]
    return {
        "mode": "TF",
        "min_gram_length": 1,
        "max_gram_length": longest,
        "max_skip_count": 0,
        "ngram_counts": [0, *np.cumsum(sizes, dtype=int).tolist()],
        "ngram_indexes": columns,
        "pool_strings": [word for i in columns for word in split[i]],
    }


SNIPPET: Final = f"""import json

import numpy as np
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import TfidfVectorizer

FOLDER = "."  # this folder
TEXTS = ["a fine film", "a dull one"]

a = load_file(f"{{FOLDER}}/{FILE}")
with open(f"{{FOLDER}}/{FACTS}", encoding="utf-8") as file:
    facts = json.load(file)
vectorizer = TfidfVectorizer(
    ngram_range=(1, facts["max_ngram"]),
    sublinear_tf=facts["sublinear_tf"],
    vocabulary=facts["vocabulary"],
)
vectorizer.idf_ = a["idf"]
x = vectorizer.transform(TEXTS)  # sparse (n, V)
scores = x @ a["coef"].T + a["intercept"]
scaled = scores / (facts["temperature"] or 1.0)
probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
probabilities /= probabilities.sum(axis=1, keepdims=True)
for text, row in zip(TEXTS, probabilities):
    print(text, facts["classnames"][row.argmax()], f"{{row.max():.4f}}")
"""
ONNX_SNIPPET: Final = f"""import json
import re

import numpy as np
import onnxruntime

FOLDER = "."  # this folder
TEXTS = ["a fine film", "a dull one"]

with open(f"{{FOLDER}}/{ONNX_FACTS}", encoding="utf-8") as file:
    facts = json.load(file)
rows = [re.findall(facts["token_pattern"], text.lower()) for text in TEXTS]
length = max([1, *map(len, rows)])
words = np.array([row + [""] * (length - len(row)) for row in rows], dtype=object)  # (n, length)
session = onnxruntime.InferenceSession(f"{{FOLDER}}/model.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(None, {{"words": words}})
for text, row in zip(TEXTS, probabilities):
    print(text, facts["classnames"][row.argmax()], f"{{row.max():.4f}}")
"""
