"""``app``: the real command on a free port, its page in headless Chromium, and its messages."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clipadapt.core.cli import app_command
from tests.integration.browser import Page, find_chromium
from tests.integration.conftest import COLOURS, picture

CHROMIUM = find_chromium()
CARD = "document.querySelector('#answer .card')"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_clip):
    """A run, and the folder of its images."""
    from clipadapt.core.experiments import config
    from clipadapt.core.records.run_store import RunStore
    from clipadapt.core.runs.session import run_experiments

    root = tmp_path_factory.mktemp("app")
    for s, (split, n) in enumerate((("train", 3), ("val", 6), ("test", 3))):
        for c, (name, colour) in enumerate(COLOURS.items()):
            for i in range(n):
                picture(root / "images" / split / name / f"{i}.png", colour, 1000 * s + 100 * c + i)
    settings = [f"model.name={tiny_clip}", f"data.name=folder:{root / 'images'}", "seeds=[1]"]
    experiment = config.load(["clip_adapter-quick"], [*settings, "method.epochs=1"])
    (record,) = run_experiments([experiment], root / "runs")
    return RunStore(root / "runs").run_dir(record), root / "images"


@pytest.fixture(scope="module")
def server(place, console, tmp_path_factory):
    """The command's process and its address."""
    pytest.importorskip("gradio", reason="the extra app is not installed")
    process = subprocess.Popen(
        [console("clipadapt"), "app", str(place[0]), "--port", "0", "--neighbours", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=tmp_path_factory.mktemp("cwd"),
    )  # fmt: skip
    line = process.stdout.readline()
    assert "open http://" in line, process.stderr.read()
    yield process, re.search(r"http://\S+", line)[0]
    process.kill()
    process.communicate()


def test_it_listens_on_this_machine_alone(server):
    process, address = server
    port = urlsplit(address).port

    tables = [Path(f"/proc/{process.pid}/net/{name}") for name in ("tcp", "tcp6")]
    if not tables[0].exists():
        pytest.skip("no /proc/net")
    lines = [line.split() for t in tables if t.exists() for line in t.read_text().splitlines()[1:]]
    listening = {
        c[1].split(":")[0] for c in lines if c[3] == "0A" and c[1].endswith(f":{port:04X}")
    }

    assert listening == {"0100007F"}  # 127.0.0.1
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_an_image_is_shown_with_class_probability_set_and_neighbours(server, place):
    process, address = server
    with Page(CHROMIUM) as page:
        page.look(1300, 1000)
        page.visit(address)
        page.wait("!!document.querySelector('#given input[type=file]')")
        page.give_files("#given input[type=file]", [place[1] / "test" / "red_thing" / "0.png"])
        page.wait(f"!!{CARD}")

        text = page.evaluate(f"{CARD}.innerText")
        bars = page.evaluate(f"{CARD}.querySelectorAll('ol li').length")
        pictures = page.evaluate(f"{CARD}.querySelectorAll('.near img').length")
        notes = page.evaluate("document.querySelector('#answer .notes').innerText")

        # Other classes, then a wrong template.
        type_in(page, "classnames", "red\\nblue")
        page.evaluate("document.querySelector('#apply').click()")
        page.wait(f"{CARD}.querySelectorAll('ol li').length === 2")
        type_in(page, "templates", "a photo")
        page.evaluate("document.querySelector('#apply').click()")
        page.wait("!!document.querySelector('#answer .error')")
        error = page.evaluate("document.querySelector('#answer').innerText")

        sizes = []
        for width in (1300, 400):
            page.look(width, 900)
            sizes.append(page.evaluate("document.documentElement.scrollWidth"))
        hosts = {urlsplit(r).netloc for r in page.requests if not r.startswith("blob:")}

    assert bars == 3
    assert pictures == 3
    assert re.search(r"(red|blue|green).thing \d+\.\d%", text)
    assert "Prediction set" in text
    assert "probability 0.9 (lac, calibrated on 18 examples of val)" in notes
    assert "needs exactly one '{}'" in error
    assert sizes == [1300, 400]
    assert hosts == {urlsplit(address).netloc}  # nothing is loaded from elsewhere
    assert not [m for m in page.messages if m.startswith(("error", "exception"))]

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err
    assert err.rstrip().endswith("stopped")


def type_in(page: Page, element: str, text: str) -> None:
    page.evaluate(
        f"(() => {{ const a = document.querySelector('#{element} textarea'); a.value = '{text}';"
        "a.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def test_without_gradio_one_message_names_the_extra(cli, place, monkeypatch):
    monkeypatch.setattr(app_command, "find_spec", lambda name: None)

    done = cli("app", place[0])

    assert done.code == 2
    assert "needs gradio, which is not installed" in done.err
    assert 'pip install "clipadapt[app]"' in done.err


def test_a_taken_port_is_one_message(cli, place, monkeypatch):
    monkeypatch.setattr(app_command, "require_gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = cli("app", place[0], "--port", port)

    assert done.code == 2
    assert f"port {port} of 127.0.0.1 is taken by another program" in done.err
    assert "--port 0" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", "70000"), "--port must be between 0 and 65535 (got 70000)"),
        (("--host", "192.0.2.1"), "'192.0.2.1' is not an address of this machine"),
        (("--host", "nowhere.invalid"), "'nowhere.invalid' is not an address of this machine"),
        (("--neighbours", "-1"), "--neighbours must be between 0 and 50 (got -1)"),
        (("--coverage", "90"), "--coverage must be between 0 and 1 (got 90)"),
    ],
)
def test_wrong_options_are_one_message(cli, place, monkeypatch, words, message):
    monkeypatch.setattr(app_command, "require_gradio", lambda: None)
    done = cli("app", place[0], *words)

    assert done.code == 2
    assert message in done.text
    assert "hint:" in done.err


def test_a_run_of_the_other_program_is_refused(cli, place, monkeypatch):
    monkeypatch.setattr(app_command, "require_gradio", lambda: None)

    done = cli("app", place[0], "--port", "0", program="textsent")

    assert done.code == 2
    assert "use the same command of 'clipadapt'" in done.err


def test_the_network_is_warned_of(monkeypatch, capsys):
    pytest.importorskip("gradio", reason="the extra app is not installed")
    from clipadapt.core.cli import app_page

    monkeypatch.setattr(app_page, "serve", lambda trial, listening, ready: ready())
    with app_command.listen("0.0.0.0", 0) as listening:
        app_command.serve(None, listening, "0.0.0.0", open_browser=False)
    everyone = capsys.readouterr()
    with app_command.listen("127.0.0.1", 0) as listening:
        app_command.serve(None, listening, "127.0.0.1", open_browser=False)

    assert "warning: anyone who reaches this machine over the network" in everyone.err
    assert capsys.readouterr().err == ""
