"""What a shell asks a program for: its version, and completion."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

PROGRAMS = ("clipadapt", "textsent")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version_is_that_of_the_distribution(cli, program):
    done = cli("--version", program=program)

    assert (done.code, done.out) == (0, f"{program} {version('clipadapt')}\n")


def test_the_packages_have_it_too_and_import_nothing_for_it():
    code = (
        "import sys, clipadapt, textsent; assert 'importlib.metadata' not in sys.modules; "
        "print(clipadapt.__version__, textsent.__version__); assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.split() == [version("clipadapt")] * 2, done.stderr


@pytest.mark.parametrize("package", PROGRAMS)
def test_other_attributes_are_missing(package):
    module = __import__(package)

    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'version'"):
        _ = module.version


@pytest.mark.parametrize(
    ("program", "typed", "expected"),
    [
        ("clipadapt", "val", ["validate"]),
        ("textsent", "ls mod", ["models"]),
        ("clipadapt", "run maple-q", ["maple-quick"]),
        ("textsent", "bench sentiment-f", ["sentiment-fewshot"]),
        ("clipadapt", "run coop --dataset open", ["openmoji"]),
        ("clipadapt", "zeroshot --dataset imagenette", ["imagenette", "imagenette_sketch"]),
        ("textsent", "validate svm --model mini", ["minilm"]),
        ("clipadapt", "run nothing-like-this", []),
    ],
)
def test_bash_completes_commands_and_names(console, program, typed, expected):
    words = f"{program} {typed}"
    environment = os.environ | {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [console(program)], capture_output=True, text=True, env=environment, check=False
    )

    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_completion_script_of_the_shell_names_the_program(console, program):
    line = f"{console(program)} --show-completion; exit $?"  # without the exit, bash would become the program
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert f"_{program.upper()}_COMPLETE=complete_bash" in done.stdout
