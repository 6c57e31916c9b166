"""The settings part of a run id: every config key that affects the result, derived from its declaration.

Keys are declared in :mod:`clipadapt.core.experiments.settings`. A key is in the id by its value, or by facts that the
caller determines: the sha256 of a file for its path, the effective dtype for ``precision: auto``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from clipadapt.core.experiments.dotted import flatten, get, nested
from clipadapt.core.experiments.settings import declarations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.api.method import MethodConfig
    from clipadapt.core.experiments.config import Experiment


def fit_part(experiment: Experiment, version: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a fit, as plain data; the fit id is its hash.

    Args:
        experiment: The experiment.
        version: Version of the method.
        facts: The facts that config keys declare with the prefix ``fit.``, without that prefix.

    Raises:
        ValueError: If the facts are not those declared.
    """
    effects = declarations(type(experiment.method))
    settings = experiment.method.in_run_id()
    own = {key: value for key, value in settings.items() if effects[key].effect == "result"}
    method = {"name": experiment.method_name, "version": version, **own}
    return {**_part("fit", experiment, facts), "method": method}


def file_contents(method: MethodConfig) -> dict[str, str]:
    """Return the settings that stand in the run id by the content of a file, by their dotted key."""
    settings = flatten({"method": method.model_dump(mode="json")})
    by_content = flatten({"method": method.in_run_id()})
    return {k: v for k, v in by_content.items() if k in settings and settings[k] != v}


def evaluation_part(experiment: Experiment, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the evaluation on one target; with :func:`fit_part` it makes the run id.

    Args:
        experiment: The experiment.
        facts: The facts that config keys declare with the prefix ``evaluation.``, without that prefix.

    Raises:
        ValueError: If the facts are not those declared.
    """
    return _part("evaluation", experiment, facts)


def _part(
    part: Literal["fit", "evaluation"], experiment: Experiment, facts: Mapping[str, Any]
) -> dict[str, Any]:
    config, needed = experiment.resolved(), set()
    found: dict[str, Any] = {}
    for key, affects in declarations().items():
        if affects.effect != "result":
            continue
        for place in affects.facts or (affects.place or f"fit.{key}",):
            where, _, name = place.partition(".")
            if where != part:
                continue
            if affects.facts:
                needed.add(name)
            value = facts.get(name) if affects.facts else get(config, key)
            if not affects.omits(value):
                found[name] = value
    if needed != set(facts):
        wrong = ", ".join(sorted(needed ^ set(facts)))
        raise ValueError(f"missing or undeclared facts of the run id ({part}): {wrong}")
    return nested(found)
