"""Extractions: how shards are cut, what is encoded and stored, and what happens to lost and failed ones."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from clipadapt.core.api.context import Services
from clipadapt.core.api.data import Inputs
from clipadapt.core.api.errors import ClipAdaptError, ConfigError, DataError, Interrupted
from clipadapt.core.api.features import Space
from clipadapt.core.api.progress import Silent
from clipadapt.core.features.cache import FeatureCache
from clipadapt.core.features.index import PrefixSet
from clipadapt.core.files.locks import try_lock
from clipadapt.core.runs import extraction_ray
from clipadapt.core.runs import shards as module
from clipadapt.core.runs.cluster import WorkerError
from clipadapt.core.runs.extraction import Lost, extract
from clipadapt.core.runs.shards import Encoded, Part, Shard, Shards, Worker

SPACE = Space("w", "gelu", "output", "p", "fp32", 0, "text")


def digests_of(*names: object) -> np.ndarray:
    raw = b"".join(hashlib.sha256(str(n).encode()).digest() for n in names)
    return np.frombuffer(raw, np.uint8).reshape(len(names), 32)


@dataclass(frozen=True)
class Lengths:
    """A model whose feature of a text is its length; it fails at ``bad``."""

    services: Services
    bad: str = ""
    error: BaseException = field(
        default_factory=lambda: DataError("this text is bad", hint="leave it out")
    )

    def with_services(self, services):
        return replace(self, services=services)

    def encode(self, inputs, layer="output"):
        def compute(rows):
            for row in rows:
                if inputs.examples[int(row)] == self.bad:
                    raise self.error
                self.services.progress.note("warning: texts are short")
                yield np.array([row]), np.array([[len(inputs.examples[int(row)])]], np.float32)

        with self.services.meter.stage("reading"):
            digests = inputs.digests()
        return self.services.cache.get_or_compute(
            replace(SPACE, layer=layer), digests, compute
        ).rows


def part(texts, name="test", **options):
    return Part(name, Inputs(tuple(texts), tuple(map(str, range(len(texts))))), options)


def workers_of(parts, model=None, lose=()):
    """Workers in this process that lose the shards numbered in ``lose``."""
    services = Services(FeatureCache(enabled=False))

    class These:
        count = 1

        def __init__(self):
            self.worker = Worker(model or Lengths(services), services, parts)
            self.done, self.started = [], 0

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def open(self):
            return self.worker.spaces()

        def know(self, stored):
            self.stored = stored

        def show(self, bar, /):
            pass

        def has_room(self):
            return not self.done

        def start(self, shard):
            self.started += 1
            lost = self.started in lose
            self.done.append(
                Lost(shard, "killed")
                if lost
                else self.worker.encode(shard, self.stored[shard.part])
            )

        def finished(self):
            done, self.done = self.done, []
            return done

        @property
        def busy(self):
            return len(self.done)

    return These()


@dataclass(frozen=True)
class Plan:
    """What the driver reads of a plan."""

    parts: tuple[Part, ...]
    dataset: str = "texts"
    unit: str = "texts"
    key: str = "0" * 64

    @property
    def total(self):
        return sum(len(p.inputs) for p in self.parts)


def run(tmp_path, parts, *, progress=None, max_bytes=None, **options):
    cache = FeatureCache(tmp_path, max_bytes=max_bytes)
    return extract(Plan(tuple(parts)), workers_of(parts, **options), progress or Silent(), cache)


def read(tmp_path, p, layer="output"):
    """Read the stored rows of a part; nothing may be computed."""

    def never(rows):
        raise AssertionError(f"{len(rows)} rows are not stored")

    space = replace(SPACE, layer=layer)
    return FeatureCache(tmp_path).get_or_compute(space, p.inputs.digests(), never).rows[:, 0]


TEXTS = tuple("x" * (i % 50) + str(i) for i in range(300))


def test_all_parts_are_stored_and_nothing_is_encoded_twice(tmp_path):
    parts = [
        part(TEXTS),
        part([*TEXTS[:3], "new", "new"], "val"),
        part(["a", "bb"], "p", layer="x"),
    ]

    first = run(tmp_path, parts)
    again = run(tmp_path, parts)

    assert [(c.encoded, c.stored) for c in first.parts] == [(300, 0), (1, 4), (2, 0)]
    assert (again.encoded, again.rate) == (0, 0.0)
    assert [c.stored for c in again.parts] == [300, 5, 2]
    np.testing.assert_array_equal(read(tmp_path, parts[0]), [len(t) for t in TEXTS])
    np.testing.assert_array_equal(read(tmp_path, parts[2], "x"), [1, 2])
    assert sum(first.shares().values()) == pytest.approx(1)
    assert set(first.shares()) == {"reading", "decoding", "model", "writing"}


def test_a_lost_shard_is_repeated_and_one_lost_too_often_ends_the_extraction(tmp_path):
    parts = [part(TEXTS)]

    found = run(tmp_path / "a", parts, lose={1, 2, 5})

    assert (found.lost, found.encoded) == (3, 300)
    np.testing.assert_array_equal(read(tmp_path / "a", parts[0]), [len(t) for t in TEXTS])
    with pytest.raises(ClipAdaptError, match="lost 3 times on the examples 65 to 182: killed"):
        run(tmp_path / "b", parts, lose={2, 3, 4})
    assert run(tmp_path / "b", parts).encoded == 300 - module.FIRST  # the first shard was kept


def test_a_mistake_keeps_what_was_encoded_before_it(tmp_path):
    parts = [part(TEXTS)]
    services = Services(FeatureCache(enabled=False))

    with pytest.raises(ClipAdaptError, match="this text is bad") as caught:
        run(tmp_path, parts, model=Lengths(services, TEXTS[100]))

    assert caught.value.hint == "leave it out"
    assert run(tmp_path, parts).encoded == 200
    with pytest.raises(WorkerError, match="ValueError: broken"):
        run(tmp_path / "b", parts, model=Lengths(services, TEXTS[0], ValueError("broken")))


def test_an_interruption_keeps_what_was_encoded_and_says_how_much(tmp_path):
    parts = [part(TEXTS)]
    services = Services(FeatureCache(enabled=False))

    with pytest.raises(Interrupted) as caught:
        run(tmp_path, parts, model=Lengths(services, TEXTS[100], KeyboardInterrupt()))

    assert str(caught.value) == (
        "interrupted after 100 of 300 texts; they are stored, and the same command resumes"
    )
    assert run(tmp_path, parts).encoded == 200
    with pytest.raises(Interrupted, match="interrupted before anything new was stored"):
        run(tmp_path / "b", parts, model=Lengths(services, TEXTS[0], KeyboardInterrupt()))


def test_a_second_process_waits_for_the_first(tmp_path):
    notes = []
    parts = [part(TEXTS)]
    path = tmp_path / "locks" / f"encode-{'0' * 32}"
    first = try_lock(path)
    assert first is not None

    def run_first():
        """Do what the first process does while the second one waits."""
        done = workers_of(parts).worker.encode(Shard(0, 0, 300), PrefixSet())
        FeatureCache(tmp_path).open(SPACE).write(done.digests, done.rows)
        first.release()

    class Noted(Silent):
        def note(self, message, /):
            if not notes:
                run_first()
            notes.append(message)

    found = run(tmp_path, parts, progress=Noted())

    assert notes == ["another process encodes texts with this model; waiting for it"]
    assert (found.encoded, found.parts[0].stored) == (0, 300)
    assert not path.exists()


def test_features_that_the_cache_may_not_keep_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"need 1,200 bytes, .* at most 1,000"):
        run(tmp_path, [part(TEXTS)], max_bytes=1000)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, caplog):
    from clipadapt.core.features import space

    def full(*_):
        raise OSError(28, "No space left on device")

    parts = [part(TEXTS)]
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(space, "write_segment", full)
        with pytest.raises(DataError, match="cannot be written to .*: No space left on device"):
            extract(Plan(tuple(parts)), workers_of(parts), Silent())
    assert caplog.text == ""  # one message
    assert extract(Plan(tuple(parts)), workers_of(parts), Silent()).encoded == 300


def test_warnings_of_workers_are_shown_once(tmp_path):
    notes = []

    class Noted(Silent):
        def note(self, message, /):
            notes.append(message)

    run(tmp_path, [part(TEXTS)], progress=Noted())

    assert notes == ["warning: texts are short"]


# ---------------------------------------------------------------- shards


def handed_out(shards: Shards, seconds: float) -> list[Shard]:
    """Take every shard, each example of which takes ``seconds``."""
    found = []
    while (shard := shards.next()) is not None:
        found.append(shard)
        rows = np.zeros((len(shard), 1), np.float32)
        digests = np.zeros((len(shard), 32), np.uint8)
        shards.learn(Encoded(shard, digests, rows, seconds * len(shard), {}))
    return found


@pytest.mark.parametrize(("seconds", "longest"), [(1.0, 64), (0.05, 200), (1e-4, module.MOST)])
def test_shards_take_about_ten_seconds_and_cover_every_example_once(seconds, longest):
    found = handed_out(Shards([100_000, 0, 70], 1, [None] * 3), seconds)

    lengths = [len(s) for s in found if s.part == 0]
    assert lengths[0] == module.FIRST
    assert max(lengths) == longest
    assert all(b <= module.GROWTH * a for a, b in pairwise(lengths))
    for number, size in enumerate([100_000, 0, 70]):
        of_part = [s for s in found if s.part == number]
        assert [s.begin for s in of_part] == [0, *(s.end for s in of_part[:-1])][: len(of_part)]
        assert sum(map(len, of_part)) == size


def test_the_last_shards_are_divided_among_the_workers_and_known_costs_are_used():
    shards = Shards([4000], 4, [0.001])

    first = shards.next()
    assert first is not None
    assert len(first) == 500  # of 4000, an eighth
    shards.repeat(first)
    assert shards.next() == first
    lengths = [len(s) for s in handed_out(shards, 0.001)]
    assert lengths[-1] <= module.FIRST
    assert sum(lengths) == 3500


# ---------------------------------------------------------------- set of digests


def test_a_prefix_set_equals_a_set():
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 4000, size=6000)
    every = digests_of(*range(4000))
    known, own = PrefixSet(), set()
    for batch in np.array_split(numbers, 97):
        np.testing.assert_array_equal(known.contains(every[batch]), [int(i) in own for i in batch])
        new = np.array([i for i in dict.fromkeys(batch.tolist()) if i not in own], np.int64)
        known.add(every[new])
        own |= set(batch.tolist())
    assert len(known) == len(own)
    assert len(known._runs) < 14  # few, whatever was added
    copy = pickle.loads(pickle.dumps(known))
    np.testing.assert_array_equal(copy.contains(every), known.contains(every))
    assert not PrefixSet().contains(every).any()
    assert len(PrefixSet().contains(every[:0])) == 0


def test_a_copy_of_the_images_hashes_anew(tmp_path):
    from clipadapt.datasets._images import ImageFiles

    (tmp_path / "a.png").write_bytes(b"first")
    files = ImageFiles(tmp_path, ["a.png"])
    before = files.digest(0)
    (tmp_path / "a.png").write_bytes(b"second")

    assert files.digest(0) == before  # the hash is kept while the dataset is open
    assert pickle.loads(pickle.dumps(files)).digest(0) != before


# ---------------------------------------------------------------- resources of Ray workers


@pytest.mark.parametrize(
    ("device", "asked", "cluster", "options", "fitting"),
    [
        ("cpu", {}, {"CPU": 6}, {"num_cpus": 1, "num_gpus": 0}, 6),
        ("cpu", {"cpus": 2}, {"CPU": 6}, {"num_cpus": 2, "num_gpus": 0}, 3),
        ("cuda", {}, {"CPU": 6, "GPU": 2}, {"num_cpus": 3, "num_gpus": 1}, 2),
        ("cuda:1", {"gpus": 0.5}, {"CPU": 8, "GPU": 2}, {"num_cpus": 2, "num_gpus": 0.5}, 4),
        (
            "cpu",
            {"memory_bytes": 10, "custom": {"fast": 1}},
            {"CPU": 1, "fast": 1},
            {"num_cpus": 1, "num_gpus": 0, "memory": 10, "resources": {"fast": 1}},
            1,
        ),
    ],
)
def test_a_worker_gets_a_gpu_with_its_share_of_the_processors(
    device, asked, cluster, options, fitting
):
    found = extraction_ray._resources(plan_on(device, **asked), cluster)

    assert (found[0], found[2]) == (options, fitting)
    assert found[1] >= 1


def plan_on(device, **asked):
    resources = SimpleNamespace(**{
        "cpus": None,
        "gpus": None,
        "memory_bytes": None,
        "custom": {},
        **asked,
    })
    return SimpleNamespace(
        config=SimpleNamespace(resources=resources, workers=None),
        identity=SimpleNamespace(device=device),
        threads=1,
    )


@pytest.mark.parametrize(
    ("device", "asked", "said"),
    [
        ("cuda", {}, "a worker needs 1 GPU, and the cluster has 0"),
        ("cpu", {"cpus": 8}, "a worker needs 8 CPU, and the cluster has 2"),
        ("cpu", {"custom": {"fast": 1}}, "a worker needs 1 fast, and the cluster has 0"),
    ],
)
def test_what_no_machine_has_is_not_waited_for(device, asked, said):
    with pytest.raises(ConfigError, match=said):
        extraction_ray._resources(plan_on(device, **asked), {"CPU": 2.0})
