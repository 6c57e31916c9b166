"""Commands on a terminal, which a pseudo-terminal is, and in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios

import pytest

from clipadapt.core.records.run_store import RunStore
from clipadapt.core.report.tables import build_table, render
from tests.unit.core.report.test_answers import save

STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
MARKDOWN = """\
| dataset | split | model | method | shots | seeds | accuracy, % | n | parameters | fit, s | encode, s | predict, s | \
peak memory, MiB | flags |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| folder:photo | test | stitched | clip/coop (coop-quick) | 4 | 1 | 60.0 [50.2, 69.1] | 100 | 8,192 | 1.50 | 20.0 | \
0.50 | 300 |  |

Intervals are 95 %: over test examples (Wilson) for one seed, over seeds and examples together for several. n: test \
examples.

Evaluated on: folder:photo (test): protocol standard, template "a photo of a \\{\\}.", class names c1.
"""


@pytest.fixture
def runs(tmp_path):
    store = RunStore(tmp_path / "runs")
    save(store, 60)
    return store


@pytest.fixture
def on_terminal(console):
    """Run a program on a terminal of a width; return its exit code and what it wrote, without styles."""

    def call(program, *arguments, width=80, **environment):
        pid, fd = pty.fork()
        if pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
            env = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR"}}
            os.execve(
                console(program),
                [console(program), *map(str, arguments)],
                env | {"TERM": "xterm", **environment},
            )
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        out = b""
        while True:
            try:
                more = os.read(fd, 1 << 16)
            except OSError:
                break
            if not more:
                break
            out += more
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
        return code, out.decode().replace("\r\n", "\n")

    return call


@pytest.mark.parametrize("form", [None, "markdown", "csv", "latex", "html"])
def test_in_a_pipe_a_table_is_what_it_was(cli, runs, form):
    done = cli("table", runs.root, *(["--format", form] if form else []))
    table = build_table(runs.load_all(), store=runs)

    assert done.out == render(table, form or "markdown")
    if form in {None, "markdown"}:
        assert done.out == MARKDOWN


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_it_fits_the_width(on_terminal, runs, width):
    code, out = on_terminal("clipadapt", "table", runs.root, width=width)
    lines = STYLE.sub("", out).splitlines()

    assert code == 0
    assert max(map(len, lines)) <= width
    assert any("─" * 40 in line for line in lines[:4])
    assert "dataset folder:photo; split test; model stitched; shots 4" in lines
    assert not out.startswith("|")


def test_a_format_is_the_same_on_a_terminal(on_terminal, runs):
    assert on_terminal("clipadapt", "table", runs.root, "--format", "markdown") == (0, MARKDOWN)


def test_without_colour_there_are_no_styles(on_terminal, runs):
    assert "\x1b" in on_terminal("clipadapt", "table", runs.root)[1]
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal("clipadapt", "table", runs.root, **environment)[1]
