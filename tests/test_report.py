"""The report: its figures are the rows, its page is whole, escaped and answers a reader."""

import html
import json
import math
import re
import shlex
import shutil
import statistics
import sys
from html.parser import HTMLParser

import pytest
import yaml

from targetprop.commands import main
from targetprop.report import figures
from targetprop.report import layers as by_layer
from targetprop.report import page as report_page
from targetprop.report import runs as report_runs
from targetprop.training import config

pytest.importorskip("plotly", reason="the report needs plotly")


def lay(folder, seed=0, rows=None, result=True, **settings):
    """A run folder as training leaves it, of a few steps made up from the seed."""
    folder.mkdir(parents=True)
    keys = {"seed": seed, "epochs": 2, **{k.replace("__", "."): v for k, v in settings.items()}}
    chosen = config.load("digits-ldrl", list(keys.items()))
    (folder / "config.yaml").write_text(yaml.safe_dump(chosen.to_dict(), sort_keys=False))
    environment = {"torch": "2.13", "command": "targetprop train", "device": "a CPU"}
    (folder / "environment.json").write_text(json.dumps(environment))
    rows = made(seed) if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result:
        test = {"loss": 0.5, "accuracy": 0.9 + seed / 100}
        plain = {"steps": 40, "seconds_per_step": 0.01 * (seed + 1), "test": test}
        (folder / "result.json").write_text(json.dumps({**plain, "validation_accuracy": 0.9}))
    return folder


def made(seed):
    train = [
        {
            "kind": "train",
            "step": step,
            "epoch": step // 20,
            "loss": 2.0 / (1 + step) + 0.1 * seed,
            "accuracy": 0.5,
            "seconds": 0.01 * step * (seed + 1),
            "angle": {"conv_0": 10.0 + seed + step, "fc_1": 0.0},
            "mismatch": {"conv_0": 0.1 / (1 + step), "fc_1": 0.01 * (1 + seed)},
            "iterations": {"conv_0": 1, "fc_1": step},
        }
        for step in range(0, 40, 4)
    ]
    held = [
        {"kind": "validation", "step": s, "epoch": 0, "seconds": 1.0 * s, "loss": 1.0,
         "accuracy": 0.6 + s / 100 + seed / 50}
        for s in (20, 40)
    ]  # fmt: skip
    return [*train, *held, {"kind": "test", "step": 40, "loss": 0.5, "accuracy": 0.9}]


def groups_of(*folders):
    return report_runs.group(report_runs.gather([str(folder) for folder in folders]))


def of_role(figure, role):
    return [trace for trace in figure["data"] if trace["meta"]["role"] == role]


def test_a_run_alone_is_drawn_as_its_rows_say(tmp_path):
    groups = groups_of(lay(tmp_path / "one"))
    train = [row for row in made(0) if row["kind"] == "train"]
    (line,) = figures.loss_figure(groups)["data"]
    assert line["x"] == line["meta"]["step"] == [row["step"] for row in train]
    assert line["y"] == [row["loss"] for row in train]
    assert line["meta"]["seconds"] == [row["seconds"] for row in train]
    (line,) = figures.accuracy_figure(groups)["data"]
    assert line["x"] == [20, 40]
    assert line["y"] == pytest.approx([80.0, 100.0])


def test_a_band_is_mean_and_standard_deviation_of_its_seeds(tmp_path):
    for seed in range(3):
        lay(tmp_path / "sweep" / "preset" / f"seed-{seed}", seed)
    (group,) = groups = groups_of(tmp_path / "sweep")
    assert (group.label, len(group.runs)) == ("preset", 3)
    losses = [[r["loss"] for r in made(seed) if r["kind"] == "train"] for seed in range(3)]
    seconds = [[r["seconds"] for r in made(seed) if r["kind"] == "train"] for seed in range(3)]
    figure = figures.loss_figure(groups)
    (line,), (low, high) = of_role(figure, "line"), of_role(figure, "band")
    mean = [statistics.mean(at) for at in zip(*losses, strict=True)]
    std = [statistics.stdev(at) for at in zip(*losses, strict=True)]
    assert line["y"] == pytest.approx(mean)
    assert low["y"] == pytest.approx([m - s for m, s in zip(mean, std, strict=True)])
    assert high["y"] == pytest.approx([m + s for m, s in zip(mean, std, strict=True)])
    assert high["fill"] == "tonexty"
    times = [statistics.mean(at) for at in zip(*seconds, strict=True)]
    assert line["meta"]["seconds"] == low["meta"]["seconds"] == pytest.approx(times)


def test_where_one_seed_went_further_there_is_no_band(tmp_path):
    lay(tmp_path / "a", 0)
    lay(tmp_path / "b", 1, [row for row in made(1) if row["step"] < 20], result=False)
    (group,) = groups_of(tmp_path / "a", tmp_path / "b")
    found = figures.curve(group.runs, "train", "loss")
    assert found.seeds == [2] * 5 + [1] * 5
    assert found.std[5:] == [None] * 5
    assert found.mean[5:] == [row["loss"] for row in made(0) if row["kind"] == "train"][5:]
    assert max(of_role(figures.loss_figure([group]), "band")[0]["x"]) < 20


def test_layers_over_steps_are_means_of_the_rows(tmp_path):
    runs = groups_of(lay(tmp_path / "a", 0), lay(tmp_path / "b", 1))[0].runs
    (heat,) = (by_layer.angle_figure(runs) or {})["data"]
    assert heat["y"] == ["conv_0", "fc_1"]
    assert heat["x"] == [str(step) for step in range(0, 40, 4)]
    assert heat["customdata"][0] == [10.5 + step for step in range(0, 40, 4)]
    assert heat["z"] == heat["customdata"]  # no angle is near: colours go by the angle itself
    assert (heat["zmin"], heat["zmax"]) == (0, 120)
    near = lay(tmp_path / "near", 0, [{**row, "angle": {"a": 0.1, "b": 50.0}} for row in made(0)])
    (heat,) = (by_layer.angle_figure(groups_of(near)[0].runs) or {})["data"]
    assert heat["z"][0] == pytest.approx([math.log10(0.1)] * len(heat["x"]))
    assert (heat["zmin"], heat["zmax"]) == (math.log10(by_layer.LEAST_ANGLE), math.log10(90))
    first, second = (by_layer.layer_figure(runs, "mismatch") or {})["data"]
    assert first["y"] == pytest.approx([0.1 / (1 + step) for step in range(0, 40, 4)])
    assert second["y"] == pytest.approx([0.015] * 10)
    _, second = (by_layer.layer_figure(runs, "iterations") or {})["data"]
    assert second["y"] == list(range(0, 40, 4))


def test_cost_against_accuracy(tmp_path):
    lay(tmp_path / "c", 0, epochs=3, result=False)
    groups = groups_of(lay(tmp_path / "a", 0), lay(tmp_path / "b", 1), tmp_path / "c")
    figure = figures.cost_figure(groups)
    assert figure
    (runs,), (mean,) = of_role(figure, "run"), of_role(figure, "mean")
    assert runs["x"] == [0.01, 0.02]
    assert runs["meta"]["total"] == pytest.approx([0.4, 0.8])
    assert runs["y"] == pytest.approx([90, 91])
    assert (mean["x"], mean["y"]) == (pytest.approx([0.015]), pytest.approx([90.5]))
    assert mean["error_y"]["array"] == pytest.approx([statistics.stdev([90, 91])])


def test_figures_are_of_plotly_s_schema(tmp_path):
    import plotly.graph_objects as go

    def plain(figure):  # JSON and back: nothing in it is of Python alone
        return json.loads(json.dumps(figure, allow_nan=False))

    made_of = report_page.drawn(groups_of(lay(tmp_path / "a", 0), lay(tmp_path / "b", 1)))
    assert set(made_of) == {"loss", "accuracy", "cost", "angle-0", "mismatch-0", "iterations-0"}
    for figure in made_of.values():
        go.Figure(plain(figure))


def test_long_curves_are_thinned_to_their_every_kth_row():
    steps = list(range(0, 50_000, 10))
    kept = figures.thinned(steps)
    assert kept[:2] == [0, 30]
    assert kept[-1] == steps[-1]
    assert len(kept) <= figures.POINTS
    assert figures.thinned([1, 2, 3]) == [1, 2, 3]


def test_groups_and_their_names(tmp_path):
    lay(tmp_path / "x" / "run", 0)
    lay(tmp_path / "y" / "run", 0)  # the same seed again: no sample of the same mean
    lay(tmp_path / "x" / "other" / "seed-0", 0, optimizer__lr=0.01)
    found = groups_of(tmp_path / "x", tmp_path / "y", tmp_path / "x" / "run")
    assert [group.label for group in found] == ["other", "x/run", "y/run"]
    assert [len(group.runs) for group in found] == [1, 1, 1]
    differing = [s for s in report_page.settings(found) if s.differs]
    assert [(s.key, s.values) for s in differing] == [("optimizer.lr", ["0.01", "0.05", "0.05"])]


def test_seed_10_comes_after_seed_2(tmp_path):
    for seed in (10, 2):
        lay(tmp_path / f"seed-{seed}", seed, [])
    assert [r.settings["seed"] for r in report_runs.gather([str(tmp_path)])] == [2, 10]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer__lr": 0.01, "optimizer__name": "adam"},
        {"network__name": "mlp", "network__channels": [8, 8]},
        {"algorithm__solver": "sgd", "algorithm__loss": "mse"},
    ],
)
def test_the_command_makes_the_same_configuration(tmp_path, settings):
    (run,) = report_runs.gather([str(lay(tmp_path / "a b", 3, [], **settings))])
    words = shlex.split(report_runs.command(run))
    assert words[:3] == ["targetprop", "train", words[2]]
    assert words[2] in config.presets()
    pairs = [(words[i][2:], words[i + 1]) for i in range(3, len(words), 2)]
    assert pairs.pop() == ("out", "again/a b")
    again = config.load(words[2], pairs).to_dict()
    assert again == config.load(str(tmp_path / "a b" / "config.yaml")).to_dict()


def test_a_configuration_of_another_age_is_repeated_from_its_file(tmp_path):
    folder = lay(tmp_path / "old")
    values = {**yaml.safe_load((folder / "config.yaml").read_text()), "of_long_ago": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (run,) = report_runs.gather([str(folder)])
    assert str(folder / "config.yaml") in report_runs.command(run)


def report(*words):
    return main.main(["report", *map(str, words)])


def test_unfinished_and_damaged_runs_are_shown(tmp_path, capsys):
    folder = lay(tmp_path / "stopped", result=False)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    rows[3:3] = ["torn {", '{"kind": 1}', "[]"]
    odd = {"kind": "train", "step": 99, "loss": math.nan, "accuracy": 0.1, "angle": "no angle"}
    rows.append(json.dumps({**odd, "seconds": None, "mismatch": {"conv_0": None}}))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"kind": "tra')
    (folder / "environment.json").write_text("{")
    damaged = lay(tmp_path / "damaged", 1, optimizer__lr=0.01)
    (damaged / "result.json").write_text('{"steps": 1}')
    bare = lay(tmp_path / "bare", 2, [], result=False, optimizer__lr=0.02)
    (bare / "metrics.jsonl").unlink()
    assert report(folder, damaged, bare, "--out", tmp_path / "r.html") == 0
    said, told = (" ".join(text.split()) for text in capsys.readouterr())
    assert "3 runs, 3 of them unfinished" in said
    assert "5 damaged rows" in told
    assert "result.json is damaged" in told
    page = (tmp_path / "r.html").read_text()
    assert page.count("no result yet") == 3
    assert "No run has ended" in page
    loss = json.loads(data_of(page))["loss"]
    assert len(loss["data"]) == 2
    assert loss["data"][0]["y"] == [row["loss"] for row in made(0) if row["kind"] == "train"]


def data_of(page):
    return page.split('id="figures">')[1].split("</script>")[0]


HOSTILE = "<script>alert(1)<b onload=x>&amp;'\""


def test_what_comes_from_files_is_escaped(tmp_path):
    rows = made(0)
    rows[0]["angle"] = {"</script><script>alert(2)": 40.0}
    rows[0]["mismatch"] = {"<img src=x onerror=alert(3)>": 0.1}
    folder = lay(tmp_path / HOSTILE, 0, rows)
    environment = {"command": "</code><script>alert(4)", "<i>": "<script>alert(5)</script>\ud800"}
    (folder / "environment.json").write_text(json.dumps(environment))
    values = yaml.safe_load((folder / "config.yaml").read_text())
    values["data"]["dir"] = "<script>alert(6)</script>"
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "r.html"
    assert report(folder, "--out", out, "--title", "<script>alert(7)</script>") == 0
    page = out.read_text()
    assert re.findall(r"<script[^>]*>", page.replace(plotly_script(), "")) == [
        '<script type="application/json" id="figures">',
        "<script>",
        "<script>",
    ]
    assert "<img" not in page.replace(plotly_script(), "")
    assert "alert(1)" in page
    names = {trace["name"] for trace in json.loads(data_of(page))["loss"]["data"]}
    assert names == {html.escape(HOSTILE)}  # plotly would read tags in it


def plotly_script():
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


class Fetched(HTMLParser):
    """What a page would fetch, and what is wrong with its structure."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tables, self.captions, self.levels = [], 0, 0, []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetched += [found[k] for k in ("src", "srcset", "data", "poster") if k in found]
        if tag == "link":
            self.fetched.append(found["href"])
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))


def test_the_page_needs_nothing_beside_itself(tmp_path):
    out = tmp_path / "deep" / "r.html"
    assert report(lay(tmp_path / "a"), "--out", out) == 0
    page = out.read_text()
    seen = Fetched()
    seen.feed(page)
    assert seen.fetched == ["data:,"]
    own = page.replace(plotly_script(), "")
    assert len(page) - len(own) > 1e6  # the script is within
    assert "@import" not in own
    assert re.findall(r"https?://[^\"' ]+", own) == ["http://www.w3.org/2000/svg"]  # a name
    policy = re.search('Content-Security-Policy" content="([^"]*)"', own)
    assert policy
    assert "default-src &#39;none&#39;" in policy[1]
    assert (seen.tables, seen.captions) == (3, 3)
    assert seen.levels[:2] == [1, 2]
    assert all(b - a <= 1 for a, b in zip(seen.levels, seen.levels[1:], strict=False))


def test_refusals_are_one_sentence(tmp_path, capsys):
    def fails(*words):
        assert report(*words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    (tmp_path / "empty").mkdir()
    assert "holds no run" in fails(tmp_path / "empty")
    assert "holds no run" in fails(tmp_path / "absent")
    run = lay(tmp_path / "run")
    assert "ends in .html" in fails(run, "--out", tmp_path / "picture.png")
    assert "--more" in fails(run, "--more")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("- 1\n")
    assert "no algorithm.name" in fails(tmp_path / "foreign")
    (tmp_path / "foreign" / "config.yaml").write_text("a: [\n")
    assert "cannot be read as YAML" in fails(tmp_path / "foreign")
    (tmp_path / "file").write_text("")
    assert "file" in fails(run, "--out", tmp_path / "file" / "r.html")


def test_without_plotly_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert report(lay(tmp_path / "run"), "--out", tmp_path / "r.html") == 2
    assert "pip install 'targetprop[report]'" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_compare_and_sweep_name_the_report(tmp_path, capsys):
    tiny = ["--network.name", "mlp", "--network.channels", "[8]", "--steps", "2"]
    tiny += ["--data.limit", "200", "--data.validation", "0"]
    sweep = tmp_path / "a sweep"
    assert main.main(["sweep", "digits-ldrl", "--seeds", "2", *tiny, "--out", str(sweep)]) == 0
    wanted = f"targetprop report '{sweep}' --out report.html"
    assert wanted in capsys.readouterr().out.replace("\n", "")
    runs = [str(sweep / "digits-ldrl" / f"seed-{seed}") for seed in range(2)]
    assert main.main(["compare", *runs, "--out", str(tmp_path / "c.png")]) == 0
    assert "targetprop report '" in capsys.readouterr().out
    (group,) = groups_of(sweep)
    assert (group.label, len(group.runs)) == ("digits-ldrl", 2)
    assert report(sweep, "--out", tmp_path / "r.html") == 0
    assert "nothing was held out" in (tmp_path / "r.html").read_text()


@pytest.fixture
def browser():
    driven = pytest.importorskip("playwright.sync_api", reason="no playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    apart = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    apart += ["--disable-background-networking", "--disable-component-update"]
    with driven.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=apart)
        yield started
        started.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_browser_shows_it(tmp_path, browser, width, scheme):
    for seed in range(2):
        lay(tmp_path / "sweep" / "ldrl" / f"seed-{seed}", seed)
    lay(tmp_path / HOSTILE, 0, optimizer__lr=0.01, result=False)
    out = tmp_path / "r.html"
    assert report(tmp_path / "sweep", tmp_path / HOSTILE, "--out", out) == 0
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    charts = page.locator(".chart")
    assert charts.count() == 9
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator(".main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    loss = page.locator("#loss")
    loss.scroll_into_view_if_needed()
    place = loss.locator(".nsewdrag").bounding_box()
    page.mouse.move(place["x"] + place["width"] / 3, place["y"] + place["height"] / 2)
    page.locator("#loss .hoverlayer .legend, #loss .hoverlayer .hovertext").first.wait_for()
    page.mouse.move(0, 0)

    drawn = "document.getElementById('loss').data.at(-1).x.at(-1)"
    assert page.evaluate(drawn) == 36
    page.get_by_label("seconds", exact=True).check()
    assert page.evaluate(drawn) == pytest.approx(0.36)
    page.get_by_label("smooth the loss").check()
    page.get_by_label("logarithmic loss").check()
    assert page.evaluate("document.getElementById('loss').layout.yaxis.type") == "log"

    button = page.locator("#learning .legend button").first
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.getElementById('loss').data[0].visible") is False
    button.press("Enter")

    accuracy = page.locator("#accuracy")
    accuracy.focus()
    accuracy.press("ArrowRight")
    assert page.locator("#spoken").inner_text().startswith("ldrl, 20: 81.00 ± 1.4 %")
    accuracy.press("ArrowDown")
    assert page.locator("#spoken").inner_text().startswith(HOSTILE)
    heat = page.locator("#angle-0")
    heat.focus()
    heat.press("End")
    assert page.locator("#spoken").inner_text() == "conv_0, 36: 46.50°"
    heat.locator(".hoverlayer", has_text="conv_0, step 36: 46.5°").wait_for()

    page.locator("details.data[data-for=loss] summary").click()
    assert page.locator("details.data[data-for=loss] tr").count() == 21
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    page.wait_for_timeout(200)
    assert said == []
    assert asked == [out.as_uri(), "data:,"] or asked == [out.as_uri()]
