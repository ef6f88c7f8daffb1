// The rows of the table: a run, or a sweep above its runs.
import { COLUMNS, cellText } from "./columns.js";
import { confirm } from "./dialog.js";
import { el } from "./dom.js";

export function runRow(table, row, inside) {
  const cells = table.columns.map((column) => cellText(row, column));
  const picked = table.picks.has(row.id);
  const text = JSON.stringify([inside, picked, row.name, row.reason, table.columns, cells]);
  return table.kept(row.id, text, () => {
    const box = el("input", {
      type: "checkbox",
      checked: picked,
      data: { focus: "pick" },
      "aria-label": `Choose ${row.name}`,
      onclick: (event) => table.clicked(row.id, event),
    });
    return el(
      "tr",
      { className: (inside ? "inside " : "") + (picked ? "picked" : "") },
      el("td", { className: "pick" }, box),
      ...table.columns.map((column, n) => cell(table, row, column, cells[n])),
    );
  });
}

function cell(table, row, column, text) {
  if (column === "name") {
    const name = el(
      "button",
      {
        type: "button",
        className: "link",
        data: { focus: "name" },
        "aria-label": `Details of ${row.name}`,
        onclick: () => table.on.open(row),
      },
      ...breakable(row.name),
    );
    return el("td", { className: "name" }, name);
  }
  if (column === "state")
    return el(
      "td",
      { title: row.reason },
      el("span", { className: "state", data: { state: row.state } }, row.state),
    );
  return el(
    "td",
    {
      className: COLUMNS[column]?.number
        ? "n"
        : column === "settings" || column === "note"
          ? "long"
          : "",
    },
    text,
  );
}

export function sweepRow(table, sweep, members) {
  const folded = table.folded(sweep);
  const picked = members.every((row) => table.picks.has(row.id));
  const counts = Object.entries(sweep.counts).map(([state, n]) => `${n} ${state}`);
  const text = JSON.stringify([
    folded,
    picked,
    members.map((row) => row.id),
    sweep.name,
    sweep.running,
    sweep.left,
    counts,
    sweep.fault,
    table.columns.length,
    table.cannotStop,
  ]);
  return table.kept(`sweep ${sweep.id}`, text, () => {
    const fold = el(
      "button",
      {
        type: "button",
        className: "fold",
        data: { focus: "fold" },
        "aria-expanded": String(!folded),
        "aria-label": `${folded ? "Unfold" : "Fold"} sweep ${sweep.name}`,
        onclick: () => {
          table.folds.set(sweep.id, !folded);
          table.draw();
        },
      },
      folded ? "▸" : "▾",
    );
    const box = el("input", {
      type: "checkbox",
      checked: picked,
      "aria-label": `Choose the runs of sweep ${sweep.name}`,
      onchange: (event) =>
        table.pickSome(
          members.map((row) => row.id),
          event.target.checked,
        ),
    });
    const states = Object.entries(sweep.counts).map(([state, n]) =>
      el("span", { className: "state", data: { state } }, `${n} ${state}`),
    );
    const cell = el(
      "div",
      { className: "group" },
      fold,
      el("strong", {}, sweep.name),
      el("span", { className: "quiet" }, `sweep of ${members.length}`),
      ...states,
      sweep.fault ? el("span", { className: "fault" }, sweep.fault) : null,
      el("span", { className: "buttons" }, ...buttons(table, sweep)),
    );
    return el(
      "tr",
      { className: "sweep" },
      el("td", { className: "pick" }, box),
      el("td", { colspan: table.columns.length }, cell),
    );
  });
}

function buttons(table, sweep) {
  const name = `sweep ${sweep.name}`;
  const button = (text, action) =>
    el(
      "button",
      { type: "button", data: { focus: text }, "aria-label": `${text} ${name}`, onclick: action },
      text,
    );
  const found = [
    el(
      "a",
      {
        href: `/report?id=${sweep.id}`,
        target: "_blank",
        rel: "noopener",
        "aria-label": `Report of ${name}`,
      },
      "Report",
    ),
  ];
  if (sweep.running && !table.cannotStop)
    found.push(button("Stop", () => confirm("stop", `sweep:${sweep.id}`)));
  if (!sweep.running && sweep.left)
    found.push(button("Resume", () => confirm("resume", `sweep:${sweep.id}`)));
  return found;
}

// A long name may be broken after a comma.
const breakable = (name) => name.split(/(?<=,)/).flatMap((part) => [part, el("wbr")]);
