"""The page of a run: what it says, that it needs nothing else, and that it works in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reports import page, svg
from reports.page import Report, embedded_sheets, seconds_left, write_page
from reports.svg import Axes, Panel, Series

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


def events(last=40):
    lines = []
    for step in range(10, last + 1, 10):
        numbers = {"D_loss_real": 1 / step, "G_loss": -step, "images_seen": 32 * step, "images_per_s": 100.0}
        lines.append({"event": "train", "step": step, "time": 1000.0 + step, **numbers})
        protocol = {"network": "x", "bn_mode": "running" if step < 30 else "standing"}
        scores = {"fd": 100 / step, "is_mean": 3.0, "is_std": 0.5, "coverage": 0.4}
        lines.append({"event": "eval", "step": step, "time": 1001.0 + step, **scores, "protocol": protocol})
        lines.append({"event": "singular_values", "step": step, "time": 1001.0 + step, "D/conv<1>": 1.5 + step})
    lines.append({"event": "change", "step": 20, "time": 1020.0, "flags": {"G_lr": [0.1, "</script>"]}})
    return lines


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <run> & more"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "ckpt_00000040.pth").write_bytes(b"x" * 2_000_000)
    (folder / "samples").mkdir()
    for i, step in enumerate((10, 20, 40)):
        Image.new("RGB", (30, 20), (80 * i, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
    flags = {"G_lr": (4e-4, 2e-4), "G_attn": ([], [64]), "name": ("<b>", "")}
    return Report(folder, events(), 80, flags, {"torch": "2.14", "commit": "a" * 64}, {"coverage": 0.9})


class Structure(HTMLParser):
    """Elements that are open and what the page's text and links are."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.words, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def data(self):
        return json.loads(next(word for word in self.words if word.startswith('{"width"')))


def test_the_page_says_what_the_run_is(run):
    text = page.page(run)
    parsed = Structure(text)
    words = " ".join(parsed.words)
    assert parsed.open == []
    for expected in (
        *("a <run> & more", "step 40 of 80 (50%)", "--G_lr", "--G_attn", "<b>", "aaaaaaaaaaaa...", "D/conv<1>"),
        *("G_lr 0.1 → </script>", "protocol 2", "standing", "weights/ckpt_00000040.pth", "2.0 MB", "41.5", "left"),
    ):
        assert expected in words, expected
    assert "<run>" not in text and "weights/ckpt_00000040.pth" in parsed.links
    assert text.count("</script>") == 2  # no text of the run's ends one


def test_the_page_asks_nobody(run):
    parsed = Structure(page.page(run))
    assert all(link.startswith("data:") or re.fullmatch(r"[\w./]+", link) for link in parsed.links)
    assert {"http-equiv": "Content-Security-Policy", "content": page.POLICY} in [
        a for t, a in parsed.tags if t == "meta"
    ]
    assert "default-src 'none'" in page.POLICY and "http" not in page.POLICY
    assert not any(
        word in (page.HERE / name).read_text() for name in ("page.js", "page.css") for word in ("http", "url(")
    )


def test_the_numbers_of_the_curves_are_those_of_the_log(run):
    data = Structure(page.page(run)).data
    series = {one["name"]: one["points"] for panel in data["panels"] for one in panel}
    assert [(step, value) for step, value, *_ in series["fd"]] == [(10, 10), (20, 5), (30, 100 / 30), (40, 2.5)]
    assert [sheet["step"] for sheet in data["sheets"]] == [10, 20, 40]
    xs, ys = zip(*[(x, y) for *_, x, y in series["fd"]], strict=True)
    assert np.allclose(np.diff(xs), np.diff(xs)[0], atol=0.11) and list(ys) == sorted(ys)  # it falls: y grows downwards


def test_axes_put_values_where_they_belong():
    axes = Axes(Panel("t", [Series("a", [(0, 1.0), (100, 3.0)], [0.5, 0.5])]))
    assert axes.x(0) == svg.LEFT and axes.x(100) == svg.WIDTH - svg.RIGHT
    assert axes.values[0] < 0.5 and axes.values[1] > 3.5 and axes.y(2) == pytest.approx((axes.y(1) + axes.y(3)) / 2)
    log = Axes(Panel("t", [Series("a", [(0, 1.0), (100, 100.0)])], logarithmic=True))
    assert log.y(10) == pytest.approx((log.y(1) + log.y(100)) / 2) and {1, 10, 100} <= set(log.value_ticks())
    flat = Axes(Panel("t", [Series("a", [(7, 0.0)])], logarithmic=True))
    assert np.isfinite([flat.x(7), flat.y(0)]).all()


@pytest.mark.parametrize("number", [1, 2, 200, 20_000])
def test_a_curve_has_few_points_and_its_last(number):
    points = [(i, float(i)) for i in range(number)]
    points[number // 2] = (number // 2, float("nan"))
    thin = svg.thinned(Series("a", points))
    assert len(thin.points) <= svg.MOST_POINTS + 1
    if number > 2:
        assert thin.points[-1] == (number - 1, number - 1) and not any(v != v for _, v in thin.points)


def test_ticks_are_round():
    assert svg.ticks(0, 1_000_000, 5) == [0, 200_000, 400_000, 600_000, 800_000, 1_000_000]
    assert [svg.short(n) for n in (1_000_000, 200_000, 1500, 0.05, 10_000)] == ["1M", "200k", "1500", "0.05", "10k"]


def test_time_left_counts_no_pause():
    lines = events(40)
    for line in lines:
        if line["step"] > 20:
            line["time"] += 86_400  # the next day
    assert seconds_left([e for e in lines if e["event"] == "train"], 80) == pytest.approx(40, rel=0.01)
    assert seconds_left([], 80) is None


def test_sheets_fit_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SHEETS_BYTES", 200_000)
    noise = np.random.default_rng(0)
    for step in range(100):
        pixels = noise.integers(0, 256, (60, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"step_{step:08d}.png")
    (tmp_path / "step_00000099.png").write_bytes(b"damaged")
    sheets = embedded_sheets(tmp_path)
    assert 5 <= len(sheets) <= page.MOST_SHEETS and sum(len(sheet["src"]) for sheet in sheets) < 1.4 * 200_000
    assert sheets[0]["step"] == 0 and sheets[-1]["step"] > 80


@pytest.mark.parametrize("lines", [[], [{"event": "train", "step": 1, "time": 1.0, "G_loss": float("inf")}]])
def test_a_run_that_has_only_begun_has_a_page(tmp_path, lines):
    parsed = Structure(page.page(Report(tmp_path, lines, 10)))
    assert parsed.open == [] and "not evaluated yet" in " ".join(parsed.words)


SCRIPT = """<script>
const wait = new Promise((done) => addEventListener("load", done));
wait.then(() => {
  const slider = document.getElementById("slider"), before = document.getElementById("sheet").src;
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  const svg = document.querySelector("svg[data-panel='1']"), box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 0.99 * box.width, clientY: box.top + 9}));
  const found = {
    moved: document.getElementById("sheet").src !== before,
    step: document.getElementById("sheet_step").textContent,
    readout: svg.parentElement.querySelector(".readout").textContent,
    asked: performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length,
    dark: getComputedStyle(document.body).backgroundColor,
  };
  document.body.append("FOUND" + JSON.stringify(found) + "END");
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_works_in_a_browser(run, tmp_path, dark):
    write_page(run, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    (tmp_path / "tried.html").write_text(text.replace("</body>", f"{SCRIPT}</body>"))
    flags = [*FLAGS.split(), *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path}/tried.html",
    ]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.findall(r"FOUND(\{.*?\})END", seen)[-1])
    assert found["moved"] and found["step"] == "step 10" and found["asked"] == 0
    assert found["readout"].startswith("step 40") and "fd 2.5" in found["readout"]
    assert found["dark"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
