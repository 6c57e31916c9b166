from __future__ import annotations

from clipadapt.core.api.data import Inputs
from clipadapt.core.data.labelled import make_split
from clipadapt.core.files.resume import resume_key


def split(*texts, labels=(0, 1)):
    return make_split(texts, [str(i) for i in range(len(texts))], labels, ("a", "b"))


def test_the_key_depends_on_facts_examples_and_labels_and_not_on_ids():
    facts = {"seed": 1, "config": {"lr": 0.1}}
    key = resume_key(facts, (split("x", "y"), None))

    assert key == resume_key(dict(reversed(facts.items())), (split("x", "y"),))
    renamed = split("x", "y")
    renamed = type(renamed)(Inputs(("x", "y"), ("p", "q")), renamed.labels, renamed.classnames)
    assert key == resume_key(facts, (renamed,))
    others = [
        resume_key({**facts, "seed": 2}, (split("x", "y"),)),
        resume_key(facts, (split("x", "z"),)),
        resume_key(facts, (split("x", "y", labels=(1, 0)),)),
        resume_key(facts, (split("x", "y"), split("x", "y"))),
        resume_key(facts, ()),
    ]
    assert len({key, *others}) == 6
