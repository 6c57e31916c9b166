"""ImageNette: published splits, the held-out val, every layout of the folder, and the download."""

from __future__ import annotations

import hashlib
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from clipadapt.core.api.data import DatasetOptions
from clipadapt.core.api.errors import DataError
from clipadapt.core.files import network
from clipadapt.datasets import imagenette
from clipadapt.datasets.imagenette import FOLDERS, WNIDS, open_imagenette

STRICT = DatasetOptions()
NAMES = (
    "tench",
    "English Springer Spaniel",
    "cassette player",
    "chainsaw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


def write_split(folder, n, wnids=WNIDS):
    for c, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (4, 4), (c, i, len(folder.name))).save(
                folder / wnid / f"{wnid}_{i}.JPEG"
            )


@pytest.fixture
def both(tmp_path):
    write_split(tmp_path / "train", 20)
    write_split(tmp_path / "val", 2)
    return tmp_path


def test_train_and_val(both):
    data = open_imagenette(str(both), STRICT)

    assert data.classnames == NAMES
    assert data.splits == ("train", "val", "test")
    assert len(data.split("test")) == 20
    assert len(data.split("train")) + len(data.split("val")) == 200
    assert 8 <= len(data.split("val")) <= 35
    assert set(data.split("train").inputs.ids).isdisjoint(data.split("val").inputs.ids)
    assert data.split("test").inputs.ids[0] == "val/n01440764/n01440764_0.JPEG"
    assert data.flags == ("test_is_published_val",)


def test_only_val(tmp_path):
    write_split(tmp_path / "val", 1)
    data = open_imagenette(str(tmp_path), STRICT)
    assert data.splits == ("val", "test")
    assert data.split("val").inputs.ids == data.split("test").inputs.ids
    assert data.split("val").labels.tolist() == list(range(10))
    with pytest.raises(DataError, match="has no split 'train'; it has: val, test"):
        data.split("train")


def test_every_layout_gives_the_same_dataset(tmp_path):
    write_split(tmp_path / FOLDERS["320px"] / "val", 1)
    opened = [
        open_imagenette(str(path), STRICT)
        for path in (tmp_path, tmp_path / FOLDERS["320px"], tmp_path / FOLDERS["320px"] / "val")
    ]
    assert len({data.fingerprint for data in opened}) == 1
    assert {data.name for data in opened} == {"imagenette"}


def test_ten_classes_are_read_from_the_whole_imagenet(tmp_path):
    write_split(tmp_path / "val", 1, (*WNIDS[:8], "n01443537"))
    data = open_imagenette(str(tmp_path), STRICT)
    assert len(data.split("test")) == 8
    assert data.flags == ("test_is_published_val", "empty_class")
    assert data.notes == ("imagenette: classes without a readable image: golf ball, parachute",)


def test_unreadable_image_is_skipped(both):
    (both / "val" / WNIDS[3] / f"{WNIDS[3]}_1.JPEG").write_text("text")
    data = open_imagenette(str(both), DatasetOptions(on_bad_image="skip"))
    assert data.skipped == 1
    assert len(data.split("test")) == 19
    assert data.split("test").labels.tolist().count(3) == 1


def test_other_folder_is_an_error_with_the_layout(tmp_path):
    write_split(tmp_path, 1, ("n02086240",))
    with pytest.raises(
        DataError, match=r"none of the ten classes of ImageNette; expected.*\n  hint: .*folder:PATH"
    ):
        open_imagenette(str(tmp_path), STRICT)


def test_misspelled_folder_suggests_a_similar_name(both):
    with pytest.raises(DataError, match=r"did you mean 'train'\?"):
        open_imagenette(str(both / "trian"), STRICT)


def test_missing_network_is_reported_within_ten_seconds(monkeypatch):
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.2)

    def hang(*_, **__):
        time.sleep(3)
        raise OSError

    monkeypatch.setattr(network.urllib.request, "urlopen", hang)
    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_imagenette("160", STRICT)
    assert time.monotonic() - begun < 2.5
    assert "cannot download imagenette (160px) from https://" in caught.value.problem
    assert "imagenette:DIR" in caught.value.hint
    assert "openmoji:color" in caught.value.hint


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small local archive in place of the published one."""
    from torchvision.datasets import Imagenette

    write_split(tmp_path / "src" / FOLDERS["160px"] / "train", 3)
    write_split(tmp_path / "src" / FOLDERS["160px"] / "val", 1)
    packed = tmp_path / f"{FOLDERS['160px']}.tgz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "src" / FOLDERS["160px"], FOLDERS["160px"])
    md5 = hashlib.md5(packed.read_bytes()).hexdigest()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Imagenette, "_ARCHIVES", {"160px": (f"{host}/{packed.name}", md5)})
    monkeypatch.setattr(imagenette, "HOST", host)
    monkeypatch.setattr(imagenette, "cache_dir", lambda: tmp_path / "cache")
    yield packed
    server.shutdown()
    server.server_close()


def test_download_is_unpacked_once(archive, tmp_path):
    data = open_imagenette("160", STRICT)
    assert data.name == "imagenette:160"
    assert len(data.split("test")) == 10
    target = tmp_path / "cache" / "datasets" / "imagenette" / FOLDERS["160px"]
    assert sorted(p.name for p in target.iterdir()) == ["train", "val"]

    archive.unlink()
    assert len(open_imagenette("160px", STRICT).split("test")) == 10


def test_wrong_checksum_is_an_error_and_leaves_nothing(archive, tmp_path):
    archive.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"the download of imagenette \(160px\) failed: "):
        open_imagenette("160", STRICT)
    assert list((tmp_path / "cache" / "datasets" / "imagenette").iterdir()) == []


def test_real_images(shared):
    data = open_imagenette(f"{shared}/data/imagenette-mini", STRICT)
    assert data.classnames == NAMES
    assert len(data.split("val")) == len(data.split("test")) == 10
    assert min(data.split("val").inputs.examples[0].size) > 100
