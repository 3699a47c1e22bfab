"use strict";
// The numbers of the panels, as page.py wrote them: for each, its series of [step, value, x, y] (x, y in the drawing).
const data = JSON.parse(document.getElementById("data").textContent);

// The value at three to six digits, as Python's :.5g writes it.
const text = (value) => String(Number(value.toPrecision(5)));

function nearest(points, x) {
  let best = points[0];
  for (const point of points) if (Math.abs(point[2] - x) < Math.abs(best[2] - x)) best = point;
  return best;
}

document.querySelectorAll("svg[data-panel]").forEach((svg) => {
  const panel = data.panels[svg.dataset.panel];
  const readout = svg.parentElement.querySelector(".readout");
  const cursor = svg.querySelector(".cursor");
  const legend = readout.innerHTML;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * data.width;
    const found = panel.map((series) => nearest(series.points, x));
    const first = found.reduce((a, b) => (Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a));
    cursor.setAttribute("x1", first[2]);
    cursor.setAttribute("x2", first[2]);
    cursor.style.visibility = "visible";
    readout.textContent = "";
    const at = document.createElement("span");
    at.textContent = "step " + first[0].toLocaleString("en");
    readout.append(at);
    panel.forEach((series, i) => {
      const line = document.createElement("span");
      const key = document.createElement("i");
      key.className = "key";
      key.style.borderTopColor = series.colour;
      key.style.borderTopStyle = series.style;
      line.append(key, series.name + " " + text(found[i][1]));
      if (found[i][0] !== first[0]) line.append(" (step " + found[i][0].toLocaleString("en") + ")");
      readout.append(line);
    });
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    readout.innerHTML = legend;
  });
});

const slider = document.getElementById("slider");
if (slider) {
  const show = () => {
    const sheet = data.sheets[Number(slider.value)];
    document.getElementById("sheet").src = sheet.src;
    document.getElementById("sheet_step").textContent = "step " + sheet.step.toLocaleString("en");
  };
  slider.addEventListener("input", show);
  show();
}

const written = document.getElementById("written");
const minutes = (Date.now() / 1000 - Number(written.dataset.time)) / 60;
if (minutes >= 1) {
  const [number, unit] = minutes < 120 ? [minutes, "minutes"] : minutes < 2880 ? [minutes / 60, "hours"] : [minutes / 1440, "days"];
  written.append(", " + Math.round(number) + " " + unit + " ago");
}
