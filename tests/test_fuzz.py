"""Any configuration is a run or one sentence, in bounded time and memory."""

import contextlib
import io
import resource
import shutil
import signal
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targetprop.commands import common, main
from targetprop.training import config

SKIPPED = {"compile"}
"""Minutes of a compiler's work whatever else is set; tests/test_speed.py has it."""

SMALL = [
    "--data.limit=100",
    "--data.batch_size=20",
    "--steps=2",
    "--log_every=1",
    "--measure_every=0",
]


class Enough(BaseException):
    """A run has gone on for half a second: that it would go on is not what is asked here."""


def plausible():
    """By key, the values that the presets give it."""
    found = {key: set() for key in config.keys()}  # noqa: SIM118 - a function, no mapping
    for preset in config.presets().values():
        for key, value in config.flat(preset):
            found.setdefault(key, set()).add(repr(value) if isinstance(value, list) else value)
    return {key: sorted(values, key=str) for key, values in found.items() if key not in SKIPPED}


PLAUSIBLE = plausible()
EVERY = sorted({str(value) for values in PLAUSIBLE.values() for value in values})
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 2**64, 10**20, -(2**63)]),
    st.floats(width=32),
    st.sampled_from(["nan", "inf", "-inf", "1e-320", "1e400", "0x10", "1_0", "٣"]),
)
WILD = st.one_of(
    NUMBERS,
    st.sampled_from(EVERY),
    st.sampled_from(
        ["", "null", "true", "~", "[]", "{}", "[[]]", "{a: 1}", "[null]", "- 1", "!!x"]
    ),
    st.lists(st.one_of(st.integers(-1, 40), st.sampled_from(["a", None, 1.5, [1], 10**18])))
    .map(repr)
    .map(lambda text: text.replace("None", "null")),
    st.text(string.printable, max_size=12),
    st.text(max_size=6),
)


@st.composite
def overrides(draw):
    """A preset and a few settings, each from the presets' values for its key or from anywhere."""
    preset = draw(st.sampled_from([name for name in config.presets() if "digits" in name]))
    words = []
    for key in draw(st.lists(st.sampled_from(sorted(PLAUSIBLE)), max_size=4, unique=True)):
        near = [st.sampled_from(PLAUSIBLE[key])] * 2 if PLAUSIBLE[key] else []
        words.append(f"--{key}={draw(st.one_of(*near, NUMBERS, WILD))}")
    return preset, words


def peak():
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(words):
    """(exit code or None of a run that was let go, what it said) of a command, in half a second.

    An alarm that rings while an object is collected is lost: such a run is let go too.
    """
    rung = []

    def enough(number, frame):
        rung.append(number)
        raise Enough

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main.main(words)
        return (None, "") if rung else (code, said.getvalue())
    except Enough:
        return None, said.getvalue()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_or_sentence(case, monkeypatch):
    """Try one."""
    monkeypatch.setattr(common.figures, "draw_runs", lambda *args: None)
    preset, words = case
    folder = Path(tempfile.mkdtemp())
    before = peak()
    try:
        code, said = attempt(
            ["train", preset, *SMALL, *words, "--data-dir", str(folder), "--out", str(folder / "r")]
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert code in (None, 0, main.BAD_INPUT, main.DIVERGED), said
    assert "Traceback" not in said
    if code:
        sentences = [line for line in said.splitlines() if line.startswith("targetprop")]
        assert len(sentences) == 1, said
    assert peak() - before < 2 * 2**30


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What a first run imports late: an alarm within an import would leave half a module."""
    for preset in ("digits-ldrl", "digits-backprop"):
        folder = tmp_path_factory.mktemp("warm") / preset
        assert main.main(["train", preset, *SMALL, "--out", str(folder)]) == 0


LIMITS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=500, derandomize=True, **LIMITS)
@given(overrides())
def test_any_configuration_is_a_run_or_one_sentence(case):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_or_sentence(case, monkeypatch)


@pytest.mark.slow
@settings(max_examples=10_000, **LIMITS)
@given(overrides())
def test_any_of_ten_thousand_configurations(case):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_or_sentence(case, monkeypatch)
