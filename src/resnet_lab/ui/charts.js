// Line charts: one for each figure, training dashed and validation solid, with the values under
// the pointer.
import { el, svg } from "./dom.js";

const SPACE = { left: 52, right: 14, top: 10, bottom: 38 };
const HEIGHT = 280;
const MOST_NAMED = 12; // lines whose values are listed under the pointer

// chart: {title, unit, lines: [{name, color, dashed, faint, points: [[x, y]]}],
//         bands: [{color, points: [[x, low, high]]}], log}
export function draw(host, chart) {
  const width = Math.max(260, host.clientWidth);
  const ends = (chart.bands || []).flatMap((band) =>
    band.points.flatMap(([x, low, high]) => [
      [x, low],
      [x, high],
    ]),
  );
  const points = [...chart.lines.flatMap((line) => line.points), ...ends];
  const shown = chart.log ? points.filter(([, y]) => y > 0) : points;
  const frame = scales(shown, width, chart.log);
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    tabindex: 0,
    "aria-label": `${chart.title} by epoch, ${chart.lines.length} lines; arrow keys move along the epochs`,
  });
  picture.append(...axes(frame, width));
  for (const band of chart.bands || []) picture.append(area(band, frame));
  for (const line of chart.lines) picture.append(path(line, frame, chart.log));
  const rule = svg("line", {
    class: "rule",
    y1: SPACE.top,
    y2: HEIGHT - SPACE.bottom,
    visibility: "hidden",
  });
  picture.append(rule);
  const values = el("div", { className: "values", hidden: true });
  host.replaceChildren(
    el("h3", {}, chart.title),
    el("div", { className: "chart" }, picture, values),
  );
  follow(picture, rule, values, chart, frame, width);
}

function scales(points, width, log) {
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x0, x1] = xs.length ? [Math.min(...xs, 1), Math.max(...xs, 2)] : [0, 1];
  let [y0, y1] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
  if (log) [y0, y1] = [Math.log10(y0), Math.log10(y1)];
  const rest = (y1 - y0 || Math.abs(y1) || 1) * 0.05;
  [y0, y1] = [y0 - rest, y1 + rest];
  const across = width - SPACE.left - SPACE.right;
  const down = HEIGHT - SPACE.top - SPACE.bottom;
  return {
    x0,
    x1,
    y0,
    y1,
    log,
    x: (x) => SPACE.left + (across * (x - x0)) / (x1 - x0 || 1),
    y: (y) => SPACE.top + down * (1 - ((log ? Math.log10(y) : y) - y0) / (y1 - y0)),
    epoch: (pixel) => x0 + ((pixel - SPACE.left) / across) * (x1 - x0),
  };
}

// Round numbers from low to high, about `count` of them.
export function ticks(low, high, count, whole = false) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(
    whole ? 1 : 0,
    [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough),
  );
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n++)
    found.push(Number((n * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const n of high - low > 2 ? [1] : [1, 2, 5]) found.push(n * 10 ** power);
  return found.filter((y) => Math.log10(y) >= low && Math.log10(y) <= high);
}

function axes(frame, width) {
  const parts = [];
  for (const y of frame.log ? logTicks(frame.y0, frame.y1) : ticks(frame.y0, frame.y1, 5)) {
    parts.push(
      svg("line", {
        class: "grid",
        x1: SPACE.left,
        x2: width - SPACE.right,
        y1: frame.y(y),
        y2: frame.y(y),
      }),
    );
    parts.push(
      svg(
        "text",
        { x: SPACE.left - 7, y: frame.y(y) + 4, "text-anchor": "end" },
        String(Number(y.toPrecision(4))),
      ),
    );
  }
  for (const x of ticks(frame.x0, frame.x1, Math.min(10, width / 70), true))
    parts.push(
      svg(
        "text",
        { x: frame.x(x), y: HEIGHT - SPACE.bottom + 17, "text-anchor": "middle" },
        String(x),
      ),
    );
  parts.push(
    svg(
      "text",
      { class: "axis", x: width - SPACE.right, y: HEIGHT - 4, "text-anchor": "end" },
      "epoch",
    ),
  );
  return parts;
}

function path(line, frame, log) {
  const points = log ? line.points.filter(([, y]) => y > 0) : line.points;
  const at = points.map(([x, y]) => `${frame.x(x).toFixed(1)},${frame.y(y).toFixed(1)}`);
  if (points.length === 1)
    return svg("circle", {
      cx: at[0].split(",")[0],
      cy: at[0].split(",")[1],
      r: line.dashed ? 2.5 : 3.5,
      fill: line.color,
    });
  const look = `line${line.dashed ? " dashed" : ""}${line.faint ? " faint" : ""}`;
  return svg("polyline", { class: look, points: at.join(" "), stroke: line.color });
}

function area(band, frame) {
  const points = frame.log ? band.points.filter(([, low]) => low > 0) : band.points;
  const upper = points.map(([x, , high]) => `${frame.x(x).toFixed(1)},${frame.y(high).toFixed(1)}`);
  const lower = points
    .map(([x, low]) => `${frame.x(x).toFixed(1)},${frame.y(low).toFixed(1)}`)
    .reverse();
  return svg("polygon", {
    class: "band",
    points: [...upper, ...lower].join(" "),
    fill: band.color,
  });
}

function follow(picture, rule, values, chart, frame, width) {
  const epochs = [...new Set(chart.lines.flatMap((line) => line.points.map(([x]) => x)))].sort(
    (a, b) => a - b,
  );
  const maps = chart.lines.map((line) => new Map(line.points));
  let now = null;
  const hide = () => {
    now = null;
    values.hidden = true;
    rule.setAttribute("visibility", "hidden");
  };
  const show = (epoch) => {
    now = epoch;
    rule.setAttribute("x1", frame.x(epoch));
    rule.setAttribute("x2", frame.x(epoch));
    rule.setAttribute("visibility", "visible");
    const there = chart.lines
      .map((line, n) => [line, maps[n].get(epoch)])
      .filter(([, y]) => y !== undefined)
      .sort((a, b) => b[1] - a[1]);
    values.replaceChildren(
      el("b", {}, `epoch ${epoch}`),
      ...there.slice(0, MOST_NAMED).map(([line, y]) => named(line, y, chart.unit)),
      ...(there.length > MOST_NAMED
        ? [el("span", {}, `and ${there.length - MOST_NAMED} more`)]
        : []),
    );
    values.hidden = false;
    const right = frame.x(epoch) > width / 2;
    values.style.left = right ? "" : `${frame.x(epoch) + 12}px`;
    values.style.right = right ? `${width - frame.x(epoch) + 12}px` : "";
  };
  const nearest = (epoch) =>
    epochs.reduce((a, b) => (Math.abs(b - epoch) < Math.abs(a - epoch) ? b : a));
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    if (epochs.length) show(nearest(frame.epoch(((event.clientX - box.left) * width) / box.width)));
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !epochs.length) return;
    event.preventDefault();
    const place = now === null ? (step > 0 ? -1 : epochs.length) : epochs.indexOf(now);
    show(epochs[Math.min(epochs.length - 1, Math.max(0, place + step))]);
  });
}

function named(line, y, unit) {
  const mark = svg(
    "svg",
    { viewBox: "0 0 22 8", class: "mark" },
    svg("line", {
      class: line.dashed ? "line dashed" : "line",
      x1: 0,
      x2: 22,
      y1: 4,
      y2: 4,
      stroke: line.color,
    }),
  );
  return el("span", {}, mark, `${unit === "%" ? y.toFixed(2) : y.toPrecision(4)} ${line.name}`);
}
