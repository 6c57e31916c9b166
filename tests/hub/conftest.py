"""A local hub with open_clip models, a text model and a dataset; this process is redirected to it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.hub.hubserver import Hub
from tests.unit.models import tiny as clip
from tests.unit.textsent.models import tiny as text


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache of the package, and no user token."""
    monkeypatch.setenv("CLIPADAPT_CACHE", str(tmp_path / "clipadapt"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "clipadapt"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repositories, written once."""
    root = tmp_path_factory.mktemp("hub")
    clip.write(root / "models/org/clip/main", "clip")
    siglip = clip.write(root / "models/org/siglip/main", "siglip") / "open_clip_config.json"
    config = json.loads(siglip.read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/siglip"
    siglip.write_text(json.dumps(config))
    text.write(root / "models/org/bert/main", "bert")
    (root / "models/org/bert/main/README.md").write_text("# never fetched")
    (root / "models/org/bert/repo.json").write_text(
        json.dumps({"moved_from": ["bert"], "licence": "mit"})
    )
    shutil.copytree(root / "models/org/clip/main", root / "models/org/closed/main")
    (root / "models/org/closed/repo.json").write_text(
        json.dumps({"gated": "auto", "readers": ["alice"]})
    )
    pictures(root / "datasets/org/pets/main")
    return root


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The running hub."""
    root = Path(shutil.copytree(made, tmp_path / "root"))
    with Hub(root, tokens={"hf_alice": "alice", "hf_bob": "bob"}) as server:
        for name, value in server.constants(tmp_path / "cache").items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("time.sleep", lambda _: None)  # no waiting between attempts
        yield server


def pictures(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Write a dataset with two splits, one of them in two files."""
    (folder / "data").mkdir(parents=True)
    for split, shards in {"train": 2, "test": 1}.items():
        for shard in range(shards):
            rows = []
            for i in range(20):
                raw = io.BytesIO()
                Image.new("RGB", (8, 8), (i, shard, len(split))).save(raw, "PNG")
                rows.append({"bytes": raw.getvalue(), "path": None})
            table = pa.table({"image": rows, "label": [*classes] * 10})
            pq.write_table(table, folder / f"data/{split}-{shard:05d}-of-{shards:05d}.parquet")
