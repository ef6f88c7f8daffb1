// The page: asks the server every two seconds, and draws what has changed.
import { confirm } from "./dialog.js";
import { ask, byId, duration, el, left, say } from "./dom.js";
import { Panel } from "./panel.js";
import { Table } from "./table.js";

const POLL = 2000; // milliseconds
const panel = new Panel();
const table = new Table({
  chosen: () => panel.show(table.picked()),
  open: (row) => panel.open(row),
  again: () => poll(),
});
let content = { rows: [], sweeps: [] };
let polling = null;
let told = new Set(); // notices that were shown, and perhaps closed

async function poll() {
  clearTimeout(polling);
  try {
    const answer = await ask("/api/runs", table.question());
    if (answer.changed) received(answer.content);
    live("live", "good");
  } catch (error) {
    live(
      error instanceof TypeError ? "no answer: is resnet-lab ui still running?" : error.message,
      "bad",
    );
  }
  drawNow();
  panel.refresh();
  polling = setTimeout(poll, POLL);
}

function received(answer) {
  const first = !content.rows.length;
  content = answer;
  byId("folders").textContent = answer.folders.join(", ");
  for (const notice of answer.notices.filter((notice) => !told.has(notice))) say(notice, "bad");
  told = new Set(answer.notices);
  panel.know(answer);
  table.show(answer);
  if (first)
    table.pick(
      answer.rows
        .filter((row) => row.progress)
        .slice(0, 7)
        .map((row) => row.id),
    );
}

function live(text, kind) {
  byId("live").textContent = text;
  byId("live").className = kind;
}

// ---------------------------------------------------------------- what runs now

function drawNow() {
  const jobs = Map.groupBy
    ? Map.groupBy(content.rows, (row) => row.sweep_id)
    : new Map(
        content.sweeps.map((s) => [s.id, content.rows.filter((row) => row.sweep_id === s.id)]),
      );
  const cards = content.sweeps
    .filter((sweep) => sweep.running)
    .map((sweep) => sweepCard(sweep, jobs.get(sweep.id) || []));
  const single = content.rows.filter(
    (row) => row.progress && !content.sweeps.some((s) => s.running && s.id === row.sweep_id),
  );
  fill(byId("now"), [...cards, ...single.map(runCard)]);
}

// Leaves the elements alone whose text is the same: focus and a pressed button stay.
function fill(host, cards) {
  const old = new Map([...host.children].map((child) => [child.dataset.key, child]));
  const kept = cards.map((card) => {
    const before = old.get(card.dataset.key);
    return before && before.dataset.text === card.dataset.text ? before : card;
  });
  if (kept.length !== host.children.length || kept.some((card, n) => card !== host.children[n])) {
    const focused = document.activeElement?.dataset?.focus;
    host.replaceChildren(...kept);
    if (focused) host.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }
}

function card(key, title, words, share, buttons) {
  const bar = el("progress", {
    max: 1,
    value: share,
    "aria-label": `${title}: ${Math.round(100 * share)} percent done`,
  });
  return el(
    "article",
    { className: "card", data: { key, text: `${title}${words}${share}` } },
    el("h2", {}, title),
    bar,
    el("p", {}, words),
    el("div", { className: "buttons" }, ...buttons),
  );
}

function button(text, label, action) {
  return el(
    "button",
    { type: "button", "aria-label": label, data: { focus: label }, onclick: action },
    text,
  );
}

function sweepCard(sweep, jobs) {
  const running = jobs.filter((row) => row.progress);
  const waiting = jobs.filter((row) => ["waiting", "pending", "paused"].includes(row.state));
  const done = jobs.length - sweep.left;
  const share = (row) => (row.max_epochs ? row.progress.epoch / row.max_epochs : 0);
  const failed = sweep.counts.failed || 0;
  const words = [
    `${done} of ${jobs.length} jobs done`,
    `${running.length} running`,
    `${waiting.length} waiting`,
    ...(failed ? [`${failed} failed`] : []),
    outlook(sweepLeft(sweep, running, waiting.length)),
  ].join(", ");
  const part =
    (done + running.reduce((sum, row) => sum + share(row), 0)) / Math.max(1, jobs.length);
  return card(sweep.id, `Sweep ${sweep.name}`, words, part, [
    button("Curves", `Curves of sweep ${sweep.name}`, () =>
      table.pick(
        jobs.map((row) => row.id),
        true,
      ),
    ),
    ...stopButton(`sweep:${sweep.id}`, `sweep ${sweep.name}`),
  ]);
}

// Seconds: what the running jobs still take and the waiting ones will, side by side.
function sweepLeft(sweep, running, waiting) {
  const paces = running
    .filter((row) => row.progress.pace && row.max_epochs)
    .map((row) => row.progress.pace * row.max_epochs);
  const mean =
    sweep.mean_seconds ?? (paces.length ? paces.reduce((a, b) => a + b) / paces.length : null);
  const rests = running.map((row) => left(row) ?? mean).filter((rest) => rest !== null);
  if (!rests.length || (waiting && mean === null)) return null;
  return (rests.reduce((a, b) => a + b) + waiting * (mean || 0)) / running.length;
}

function runCard(row) {
  const epochs = row.max_epochs
    ? `epoch ${row.progress.epoch} of ${row.max_epochs}`
    : `epoch ${row.progress.epoch}`;
  const share = row.max_epochs ? row.progress.epoch / row.max_epochs : 0;
  return card(row.id, row.name, `${epochs}, ${outlook(left(row))}`, share, [
    button("Curves", `Curves of ${row.name}`, () => table.pick([row.id], true)),
    ...stopButton(row.id, row.name),
  ]);
}

const outlook = (seconds) =>
  seconds === null ? "time left not known yet" : `about ${duration(seconds)} left`;

function stopButton(id, name) {
  if (content.cannot_stop) return [el("small", {}, `no stop button: ${content.cannot_stop}`)];
  return [button("Stop", `Stop ${name}`, () => confirm("stop", id))];
}

document.addEventListener("visibilitychange", () =>
  document.hidden ? clearTimeout(polling) : poll(),
);
byId("dialog").addEventListener("close", () => poll());
poll();
