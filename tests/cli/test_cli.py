"""The command line as people use it: help, refusals, exit codes; no run is made here."""

import subprocess
import sys

import pytest

from compression import methods, params
from compression.runs.settings import Settings
from compression.tasks import TASKS


def test_help_lists_families_methods_and_tasks():
    done = subprocess.run(
        [sys.executable, "-c", "from compression.cli import main; main(['--help'])"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for name in (*methods.FAMILIES, *methods.METHODS):
        assert name in done.stdout
    shown = done.stdout.replace("\n", " ")
    assert all(task in shown for task in TASKS)


def test_a_methods_help_lists_every_field_with_range_and_default(compression):
    code, out, _ = compression("distill", "response", "--help")
    assert code == 0
    shown = " ".join(out.split())
    for name, field in {**params.fields(methods.method("response")), **params.fields(Settings)}.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert " ".join(field.param.help.split())[:20] in shown
    assert "--temperature float in [0.01, 1000] softening of both outputs [default: 4.0]" in shown
    assert "--epochs int in [0, inf) passes over the training data [default: (the task's own)]" in shown
    _, after = shown.split("with this number of its layers or residual blocks ")
    assert after.startswith(("--", "Training:"))  # not set: no default at all


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill", "respond", "--task", "digits"], "no method 'respond' in distill; there are"),
        (["distill", "response", "--task", "digits", "--temperature", "hot"], "temperature='hot' is not a number"),
        (["distill", "response", "--task", "digits", "--temperature", "0"], "out of range"),
        (["distill", "response", "--task", "digits", "--epochs", "1.5"], "not a whole number"),
        (["distill", "response", "--task", "digits", "--warmth", "3"], "No such option"),
        (["compress", "response:warmth=3", "--task", "digits"], "no field 'warmth'; it has"),
        (["compress", "finetune+unheard", "--task", "digits"], "no method 'unheard'; there are"),
        (["distil"], "No such command"),
    ],
)
def test_a_misuse_is_one_sentence_and_a_failure(compression, words, said, tmp_path):
    code, _, errors = compression(*words)
    assert code in (1, 2)
    assert said in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "mlflow.db").exists()


def test_options_are_taken_with_underscores_as_mlflow_passes_them(compression):
    _, _, errors = compression("distill", "response", "--task", "digits", "--learning_rate", "-1")
    assert "learning_rate=-1.0 is out of range" in errors
