"""A report as one page of HTML that needs nothing beside itself: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from targetprop.report import figures
from targetprop.report import layers as report_layers
from targetprop.report.figures import Figure, mean_std, outcome
from targetprop.report.layers import layers
from targetprop.report.runs import Group, command, gather, group, number
from targetprop.training.checkpoint import write_atomically
from targetprop.training.config import require

NAMED_LAYERS = 12
"""Layers that a legend names; of more, colours tell the depth and the pointer the name."""


@dataclass(frozen=True)
class Setting:
    """A line of the table of configurations: its key, a value per group, whether they differ."""

    key: str
    values: list[str]
    differs: bool


def spread(values: Sequence[float], digits: int, unit: str) -> str:
    """Mean ± sample standard deviation, as text; a dash without values."""
    if not values:
        return "–"
    mean, std = mean_std(values)
    return f"{mean:.{digits}f}{'' if std is None else f' ± {std:.{digits}f}'} {unit}"


def overview(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What a configuration came to: a line per group, for the table at the top."""
    found = []
    for one in groups:
        ended = [scored for run in one.runs if (scored := outcome(run)) is not None]
        held = [
            100 * score
            for run in one.runs
            if run.result and (score := number(run.result.get("validation_accuracy"))) is not None
        ]
        angles = [a for of in layers(one.runs, "angle").values for a in of if a is not None]
        going = [run for run in one.runs if run.result is None]
        found.append(
            {
                "label": one.label,
                "algorithm": one.algorithm,
                "runs": len(one.runs),
                "validation": spread(held, 2, "%"),
                "test": spread([score for _, _, score in ended], 2, "%"),
                "step": spread([1000 * seconds for seconds, _, _ in ended], 2, "ms"),
                "total": spread([total for _, total, _ in ended], 2, "s"),
                "angle": f"{mean_std(angles)[0]:.3g}°" if angles else "–",
                "state": f"{len(going)} unfinished" if going else "finished",
            }
        )
    return found


def shown(value: Any) -> str:
    """A setting as it is written in YAML or JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings(groups: Sequence[Group]) -> list[Setting]:
    """Every setting, side by side; those that differ come first."""
    keys = dict.fromkeys(key for one in groups for key in one.settings)
    found = []
    for key in keys:
        values = [shown(one.settings[key]) if key in one.settings else "not set" for one in groups]
        found.append(Setting(key, values, len(set(values)) > 1))
    return sorted(found, key=lambda setting: not setting.differs)


def surroundings(groups: Sequence[Group]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Headings and a line per run of what their environments say."""
    runs = [(one.label, run) for one in groups for run in one.runs]
    keys = list(dict.fromkeys(key for _, run in runs for key in run.environment))
    keys = [key for key in keys if key != "command"]
    lines = [
        (str(run.folder), [shown(run.environment.get(key, "–")) for key in keys]) for _, run in runs
    ]
    return keys, lines


def drawn(groups: Sequence[Group]) -> dict[str, Figure]:
    """Every figure of the page by the name of its place."""
    found: dict[str, Figure | None] = {
        "loss": figures.loss_figure(groups),
        "accuracy": figures.accuracy_figure(groups),
        "cost": figures.cost_figure(groups),
    }
    for slot, one in enumerate(groups):
        found[f"angle-{slot}"] = report_layers.angle_figure(one.runs)
        found[f"mismatch-{slot}"] = report_layers.layer_figure(one.runs, "mismatch")
        found[f"iterations-{slot}"] = report_layers.layer_figure(one.runs, "iterations")
    return {name: figure for name, figure in found.items() if figure and figure["data"]}


def within_script(value: Any) -> str:
    """JSON that may stand in a script element: no character in it ends or opens one."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def fingerprint(script: str) -> str:
    """What a content security policy calls a script by."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page(groups: Sequence[Group], title: str, words: Sequence[str]) -> str:
    """The whole page; all that came from files is escaped, and only our own two scripts may run.

    Args:
        groups: what it is about.
        title: its heading.
        words: of the command that makes it again.

    Raises:
        ConfigError: jinja2 or plotly is not installed.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    from markupsafe import Markup

    own = resources.files("targetprop.report") / "template"
    style, script = ((own / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    made = drawn(groups)
    headings, environments = surroundings(groups)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string((own / "report.html").read_text("utf-8"))
    return template.render(
        title=title,
        groups=groups,
        overview=overview(groups),
        figures=made,
        layers=[layer_names(one) for one in groups],
        validated=figures.has(groups, "validation"),
        notes=[(run.folder, note) for one in groups for run in one.runs for note in run.notes],
        unfinished=[run for one in groups for run in one.runs if run.result is None],
        settings=settings(groups),
        headings=headings,
        environments=environments,
        commands=[[command(run) for run in one.runs] for one in groups],
        again=shlex.join(["targetprop", *words]),
        data=Markup(within_script(made)),
        style=Markup(style),
        script=Markup(script),
        plotly=Markup(plotly),
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {fingerprint(plotly)} {fingerprint(script)}; base-uri 'none'; "
        "form-action 'none'",
    )


def layer_names(one: Group) -> list[str]:
    """The layers of a legend, in the order of their colours; none if there are too many."""
    found = report_layers.fed_back(one.runs)
    return found if 1 < len(found) <= NAMED_LAYERS else []


def write(names: Sequence[str], out: Path, title: str, words: Sequence[str]) -> list[Group]:
    """Write the report of run folders; returns what it shows.

    Raises:
        ConfigError: a folder holds no run, or something is not installed.
        FileError: a file of a run cannot be read at all.
    """
    require("a report", "report", "jinja2", "plotly")  # before anything is read
    groups = group(gather(names))
    # a name may hold bytes or halves of characters that no text has
    text = page(groups, title, words).encode("utf-8", "replace")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(text))
    return groups
