// The curves of the chosen runs: loss and accuracy by epoch, seeds alone or together.
import { draw } from "./charts.js";
import { el, svg } from "./dom.js";

const FIGURES = [
  ["loss", "Loss", "", 1],
  ["acc", "Accuracy, %", "%", 100],
];
const TOGETHER = "mean of the seeds, and a band from the lowest to the highest";

export class Curves {
  constructor(host) {
    this.host = host;
    this.palette = ["#0072B2"];
    this.together = true;
    this.log = false;
  }

  draw(runs) {
    this.runs = runs;
    const several = new Set(runs.map((run) => run.sweep)).size > 1;
    const all = grouped(runs, this.together, several);
    all.forEach((group, n) => (group.color = this.palette[n % this.palette.length]));
    const groups = all.filter((group) => group.runs.some((run) => run.epochs.length));
    const silent = runs.filter((run) => !run.epochs.length);
    const repeated = grouped(runs, true, several).some((group) => group.runs.length > 1);
    const legend = el(
      "ul",
      { className: "legend" },
      ...groups.map((group) => el("li", {}, mark(group.color), group.name)),
    );
    const options = el(
      "div",
      { className: "tools" },
      el(
        "span",
        { className: "key" },
        el("span", {}, sample(false), "validation"),
        el("span", {}, sample(true), "training"),
      ),
      repeated
        ? this.option("seeds together", this.together, (on) => (this.together = on), TOGETHER)
        : null,
      this.option("logarithmic loss", this.log, (on) => (this.log = on)),
    );
    const hosts = FIGURES.map(() => el("div", { className: "figure" }));
    this.host.replaceChildren(
      options,
      legend,
      ...(repeated && this.together
        ? [
            el(
              "p",
              { className: "quiet" },
              `Line: mean of the seeds, as far as all of them have come; thin lines go on with single seeds. Band: from the lowest to the highest seed.`,
            ),
          ]
        : []),
      el("div", { className: "figures" }, ...hosts),
      ...(silent.length
        ? [
            el(
              "p",
              { className: "quiet" },
              `No epoch yet: ${silent.map((run) => `${run.name} (${run.state})`).join(", ")}.`,
            ),
          ]
        : []),
      ...(groups.length > this.palette.length
        ? [
            el(
              "p",
              { className: "quiet" },
              `Colours repeat after ${this.palette.length} lines; the pointer names each line.`,
            ),
          ]
        : []),
    );
    FIGURES.forEach(([figure, title, unit, scale], n) =>
      draw(hosts[n], {
        title,
        unit,
        log: figure === "loss" && this.log,
        ...lines(groups, figure, scale),
      }),
    );
  }

  option(text, on, change, title = "") {
    return el(
      "label",
      { className: "box", title },
      el("input", {
        type: "checkbox",
        checked: on,
        onchange: (event) => {
          change(event.target.checked);
          this.draw(this.runs);
        },
      }),
      text,
    );
  }
}

// ---------------------------------------------------------------- runs to lines

// Runs of one sweep and setting as one group, where seeds are shown together.
function grouped(runs, together, several) {
  const found = new Map();
  for (const run of runs) {
    const shared = together && run.repeated;
    const key = shared ? `${run.sweep}\n${run.setting}` : run.id;
    if (!found.has(key)) found.set(key, { name: run.name, runs: [] });
    found.get(key).runs.push(run);
  }
  for (const group of found.values())
    if (group.runs.length > 1) {
      const { sweep, setting } = group.runs[0];
      group.name = `${several ? `${sweep}: ` : ""}${setting || "all settings alike"} (${group.runs.length} seeds)`;
    }
  return [...found.values()];
}

function lines(groups, figure, scale) {
  const chart = { lines: [], bands: [] };
  for (const { runs, name, color } of groups) {
    for (const split of ["train", "val"]) {
      const look = { color, dashed: split === "train" };
      const label = (text) => `${text}, ${split === "train" ? "training" : "validation"}`;
      const all = runs
        .map((run) => points(run, `${split}/${figure}`, scale))
        .filter((own) => own.length);
      if (!all.length) continue;
      if (all.length === 1) {
        chart.lines.push({ ...look, name: label(name), points: all[0] });
        continue;
      }
      const { mean, band, until } = joined(all);
      if (mean.length) chart.lines.push({ ...look, name: label(name), points: mean });
      if (split === "val") chart.bands.push({ color, points: band });
      all.forEach((own, n) => {
        const rest = own.filter(([x]) => x >= until);
        if (rest.length > 1)
          chart.lines.push({ ...look, faint: true, name: label(runs[n].name), points: rest });
      });
    }
  }
  return chart;
}

function points(run, key, scale) {
  return run.epochs
    .map((epoch, n) => [epoch, run[key][n]])
    .filter(([, y]) => y !== null)
    .map(([x, y]) => [x, scale * y]);
}

// Mean, lowest and highest at the epochs that every run has, and the last of these.
function joined(all) {
  const maps = all.map((own) => new Map(own));
  const common = [...maps[0].keys()].filter((epoch) => maps.every((map) => map.has(epoch)));
  const values = common.map((epoch) => maps.map((map) => map.get(epoch)));
  const mean = common.map((epoch, n) => [epoch, values[n].reduce((a, b) => a + b) / all.length]);
  const band = common.map((epoch, n) => [epoch, Math.min(...values[n]), Math.max(...values[n])]);
  return { mean, band, until: common.length ? common[common.length - 1] : -Infinity };
}

function mark(color) {
  const node = el("span", { className: "swatch" });
  node.style.background = color;
  return node;
}

const sample = (dashed) =>
  svg(
    "svg",
    { viewBox: "0 0 26 8", class: "mark" },
    svg("line", {
      class: dashed ? "line dashed" : "line",
      x1: 0,
      x2: 26,
      y1: 4,
      y2: 4,
      stroke: "currentColor",
    }),
  );
