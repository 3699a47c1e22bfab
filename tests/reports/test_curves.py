"""Curves of one run and of several: what is drawn is what the logs hold."""

import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import plot_runs
import utils
from reports import curves, events, runs


def log_of(steps, factor=1.0, per_step=32, speed=100.0):
    lines = []
    for step in steps:
        seen = {"images_seen": step * per_step, "images_per_s": speed}
        lines.append({"event": "train", "step": step, "time": 9.0 * step, "G_loss": -step, "D_loss_real": 1.0, **seen})
        about = {"protocol": {"network": "x", "bn_mode": "running", "seed": 0}}
        numbers = {"fd": factor * 100 / step, "is_mean": float(step), "is_std": 0.5, "coverage": 0.5}
        lines.append({"event": "eval", "step": step, "time": 9.0 * step, **numbers, **about})
    return lines


def run_folder(path, lines):
    path.mkdir()
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def drawn(figure_axes):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in figure_axes.lines}


@pytest.mark.parametrize("number", range(1, 12))
def test_panels_fill_the_figure(number):
    figure, panels = curves.panel_figure(number)
    assert len(panels) == number == len(figure.axes)
    figure.canvas.draw()
    boxes = [panel.get_position() for panel in panels]
    for row in {round(box.y0, 2) for box in boxes}:
        own = [box for box in boxes if round(box.y0, 2) == row]
        assert min(box.x0 for box in own) < 0.12 and max(box.x1 for box in own) > 0.95  # no empty corner


def test_curves_are_drawn(tmp_path):
    curves.plot_curves(log_of(range(1, 5)), tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert picture.shape[1] > 600 and (picture != 255).any()
    curves.plot_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_spread_ceiling_and_events_are_in_the_panels(tmp_path, monkeypatch):
    kept = []
    make = curves.panel_figure
    monkeypatch.setattr(curves, "panel_figure", lambda number: kept.append(make(number)) or kept[0])
    lines = log_of([10, 20, 30])
    lines.append({"event": "change", "step": 20, "time": 0, "flags": {"G_lr": [4e-4, 2e-4]}})
    lines += [{"event": "skipped_step", "step": i, "time": 0, "network": "G", "loss_scale": 1.0} for i in range(20)]
    curves.plot_curves(lines, tmp_path / "curves.png", {"coverage": 0.9, "accuracy": 1.0})
    panels = {axes.get_title(): axes for axes in kept[0][1]}
    band = panels["Inception score"].collections[0].get_paths()[0].vertices
    assert {(10.0, 9.5), (10.0, 10.5), (30.0, 30.5)} <= {tuple(point) for point in band.tolist()}
    assert set(drawn(panels["density and coverage"])["coverage of real images"][1]) == {0.9}
    assert [text.get_text() for text in panels["losses"].texts] == ["1"]
    told = kept[0][0].get_supxlabel()
    assert told == "1  step 20: G_lr 0.0004 → 0.0002"  # what happens all the time is no mark


def test_marks_near_each_other_can_be_read(tmp_path, monkeypatch):
    kept = []
    make = curves.panel_figure
    monkeypatch.setattr(curves, "panel_figure", lambda number: kept.append(make(number)) or kept[0])
    lines = log_of([10, 5000, 10_000])
    for step in (4990, 5000, 9000):
        text = "a long text about the losses, which stands nowhere across a panel"
        lines.append({"event": "collapse", "step": step, "time": 0, "action": "warn", "text": text, "rollbacks": 0})
    lines.append({"event": "rollback", "step": 4980, "time": 0, "number": 1, "noticed": 9000})
    curves.plot_curves(lines, tmp_path / "curves.png")
    figure, panels = kept[0]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for panel in panels for text in (*panel.texts, panel.title)]
    assert [text.get_text() for text in panels[0].texts] == ["1-3", "4"]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    told = figure.get_supxlabel().splitlines()
    assert told[0] == "1  step 4,980: rollback 1 from step 9000" and len(told) == 4


def test_the_spread_of_one_evaluation_is_seen():
    axes = Figure().subplots()
    curves.draw_band(axes, log_of([10]), "is_mean")
    (bar,) = axes.collections[0].get_segments()
    assert bar.tolist() == [[10, 9.5], [10, 10.5]]


def test_kernel_distances_are_drawn_by_orders_of_magnitude(tmp_path, monkeypatch):
    kept = []
    make = curves.panel_figure
    monkeypatch.setattr(curves, "panel_figure", lambda number: kept.append(make(number)) or kept[0])
    lines = [{"event": "eval", "step": step, "kid_mean": 1 / step, "precision": 1 / step} for step in (1, 100)]
    curves.plot_curves(lines, tmp_path / "curves.png")
    assert [axes.get_yscale() for axes in kept[0][1]] == ["log", "linear"]


def test_events_in_words():
    changes = {"G_lr": [4e-4, 2e-4], "metric_weights": ["a" * 64, "b" * 64]}
    assert events.change_text(changes).startswith("G_lr 0.0004 → 0.0002, metric_weights aaaaaaaaaaaa... → bbb")
    assert events.event_text({"event": "init_from", "step": 0, "checkpoint": "a.pth"}) == "started from a.pth"
    told = events.event_text({"event": "some_news", "step": 3, "time": 1.0, "network": "G", "value": 0.123456789})
    assert told == "some news: network G, value 0.123457"
    assert events.marks([{"event": "x" * 90, "step": 3}]) == [(3, "x" * 57 + "...", False)]
    assert events.event_text({"event": "rollback", "step": 2, "number": 1, "noticed": 5}) == "rollback 1 from step 5"


def test_of_many_collapses_the_newest_are_marked():
    collapse = {"event": "collapse", "action": "warn", "text": "the loss is stuck", "rollbacks": 0}
    found = events.marks([collapse | {"step": step} for step in range(30)])
    assert found == [(step, "warn: the loss is stuck", True) for step in range(20, 30)]


@pytest.mark.parametrize(
    ("steps", "values", "steps_shown", "values_shown"),
    [
        ([1000, 2000], [100, 70], {"1000", "2000"}, {"70", "100"}),  # on no logarithmic axis: it had one number
        ([5000 * i for i in range(1, 201)], [200 / i for i in range(1, 201)], {"200k", "1M"}, {"1", "20", "200"}),
        ([4], [7], {"4"}, {"7.0"}),
        ([1, 2], [0, 1e-14], {"1", "2"}, set()),
    ],
)
def test_numbers_at_the_axes_can_be_read(steps, values, steps_shown, values_shown):
    axes = Figure().subplots()
    curves.draw_curve(axes, "fd", steps, values)
    curves.set_ticks(axes, logarithmic=True)
    axes.figure.canvas.draw()
    shown = [[label.get_text() for label in axis.get_majorticklabels()] for axis in (axes.xaxis, axes.yaxis)]
    assert steps_shown <= set(shown[0]) and values_shown <= set(shown[1])
    assert len(set(shown[0])) == len(shown[0]) and not any("e" in text for text in shown[0])


def test_many_points_are_drawn_with_their_average():
    axes = Figure().subplots()
    values = np.arange(5000) + np.tile([-900.0, 900.0], 2500)
    curves.draw_curve(axes, "G_loss", range(0, 10_000, 2), values.tolist())
    points, average = axes.lines
    assert points.get_alpha() < 0.5 and points.get_color() == average.get_color() and average.get_label() == "G_loss"
    assert np.abs(average.get_ydata() - average.get_xdata() / 2).max() < 1
    assert len(axes.get_legend_handles_labels()[1]) == 1


# ---------------------------------------------------------------------------------------------------------------------


def test_seeds_of_a_name_are_averaged(tmp_path):
    paths = [run_folder(tmp_path / f"ssm_seed{i}", log_of([10, 20], factor)) for i, factor in enumerate((1, 2, 3))]
    paths.append(run_folder(tmp_path / "plain", log_of([10, 20, 40])))
    plot_runs.main([*paths, "--metrics", "fd", "--out", str(tmp_path / "out.png")])
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    ssm = [row for row in rows if row["name"] == "ssm"]
    assert [(row["steps"], float(row["mean"]), int(row["runs"])) for row in ssm] == [("10", 20, 3), ("20", 10, 3)]
    assert float(ssm[0]["std"]) == pytest.approx(np.std([10, 20, 30], ddof=1))
    assert [float(row["mean"]) for row in rows if row["name"] == "plain"] == [10, 5, 2.5]
    assert Image.open(tmp_path / "out.png").size[0] > 500


def test_runs_of_other_lengths_and_places_are_averaged_where_they_reach():
    one, other = (runs.RunCurves("a", None, log_of(steps, 1)) for steps in ([10, 20, 40], [20, 30]))
    line = runs.averaged([one, other], "fd", "steps")
    assert line.x.tolist() == [10, 20, 30, 40] and line.n.tolist() == [1, 2, 2, 1]
    assert line.mean.tolist() == pytest.approx([10, 5, ((5 + 2.5) / 2 + 100 / 30) / 2, 2.5])
    assert runs.averaged([one], "recall", "steps") is None


@pytest.mark.parametrize(("against", "places"), [("steps", [10, 20]), ("images", [320, 640]), ("seconds", [3.2, 6.4])])
def test_axes(against, places):
    run = runs.RunCurves("a", None, log_of([10, 20]))
    assert run.at("fd", against)[0].tolist() == pytest.approx(places)


def test_names():
    assert runs.name_of("digits_lr0.1_seed3") == "digits_lr0.1" and runs.name_of("seed1") == "seeds"
    assert runs.name_of("Seed-2_wide") == "wide" and runs.name_of("a_seed1_b") == runs.name_of("a_seed2_b")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("missing", "missing: no such run folder"),
        ("a/log.jsonl", "a file; name the run folder"),
        ("a x=./a", "a: named twice"),
        ("endless", "no numbers yet that can be drawn"),
        ("odd --against images", "--against images: .*odd"),
        ("empty", "no log.jsonl"),
        ("begun", "no numbers yet"),
        ("a --metrics nonsense", "nonsense: not in these logs, which have D_loss_real, .*fd"),
        ("a --out x.bmp", "--out x.bmp"),
        ("a --out /proc/nowhere/x.png", "cannot write"),
        ("bare --against images", "--against images: .*bare"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "begun", [])
    run_folder(tmp_path / "a", log_of([1, 2]))
    run_folder(tmp_path / "endless", [{"event": "eval", "step": 1, "time": 1, "fd": float("nan")}])
    odd = [{"images_seen": "many", "images_per_s": 1.0}, {"images_seen": 1, "images_per_s": 0}]
    run_folder(tmp_path / "odd", [{"event": "train", "step": 1, "time": 1, "G_loss": 1.0, **more} for more in odd])
    run_folder(tmp_path / "bare", [line for line in log_of([1, 2]) if line["event"] == "eval"])
    with pytest.raises(utils.UserError, match=said):
        plot_runs.main(flags.split())


def test_numbers_of_other_protocols_are_warned_of(tmp_path, capsys):
    lines = log_of([1, 2])
    other = [line | {"protocol": line["protocol"] | {"network": "y", "seed": 4}} for line in lines if "fd" in line]
    plot_runs.main([run_folder(tmp_path / "a", lines), f"b={run_folder(tmp_path / 'x', lines + other)}"])
    assert "not comparable: network" in capsys.readouterr().err
    names = {row["name"] for row in csv.DictReader((tmp_path / "runs.csv").read_text().splitlines())}
    assert names == {"a", "b"}
    bare = [line | {"protocol": {"network": "y"}} for line in lines if "fd" in line]  # of another program
    plot_runs.main([str(tmp_path / "a"), run_folder(tmp_path / "bare", lines + bare)])
    assert "bare are not comparable: network" in capsys.readouterr().err
