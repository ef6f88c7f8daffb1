// The table of runs: filter, order, columns, groups, and which runs are chosen.
import { COLUMNS, title, value } from "./columns.js";
import { byId, el } from "./dom.js";
import { Menu } from "./menu.js";
import { runRow, sweepRow } from "./rows.js";

const PAGE = 150; // rows that are drawn at first; more as one scrolls
const MANY = 60; // runs, from which on sweeps that are over are folded
const CONDITION = /[=<>~]|\sin\s/;

export class Table {
  // on.chosen(): other runs are chosen; on.open(row): details are asked for; on.again(): ask anew
  constructor(on) {
    this.on = on;
    this.rows = [];
    this.sweeps = new Map();
    this.matching = null; // ids that meet the condition in the filter box
    this.picks = new Set();
    this.nodes = new Map(); // key -> the row as it was drawn, and its text
    this.folds = new Map(); // sweep -> folded or not, as the user has it
    this.sort = { key: "", down: true };
    this.menu = new Menu(() => {
      if (this.menu.keys().length) on.again();
      this.draw();
    });
    this.filter = "";
    this.drawn = PAGE; // rows that may be drawn
    byId("runs").addEventListener("scroll", () => this.scrolled(), { passive: true });
    byId("filter").addEventListener("input", () => this.filtered());
    byId("group").addEventListener("change", () => this.fromTop());
    byId("clear").addEventListener("click", () => this.pick([]));
  }

  get columns() {
    return this.menu.shown;
  }

  question() {
    return {
      where: CONDITION.test(this.filter) ? this.filter : "",
      columns: this.menu.keys().join(","),
    };
  }

  filtered() {
    this.filter = byId("filter").value.trim();
    clearTimeout(this.waiting);
    if (CONDITION.test(this.filter)) {
      this.waiting = setTimeout(this.on.again, 300);
    } else {
      this.fault("");
      this.matching = null;
      this.plain = false;
      this.fromTop();
    }
  }

  fault(text) {
    byId("fault").textContent = text;
    byId("fault").hidden = !text;
  }

  show(content) {
    this.rows = content.rows;
    this.sweeps = new Map(content.sweeps.map((sweep) => [sweep.id, sweep]));
    const condition = CONDITION.test(this.filter);
    // A name such as "shortcut=A,seed=0" looks like a condition, and is none.
    this.plain = condition && !!content.fault && this.rows.some((row) => this.says(row));
    this.matching = condition && content.chosen ? new Set(content.chosen) : null;
    this.fault(condition && !this.plain ? content.fault : "");
    this.cannotStop = content.cannot_stop;
    for (const id of this.picks) if (!this.rows.some((row) => row.id === id)) this.picks.delete(id);
    this.draw();
  }

  // ---------------------------------------------------------------- which rows

  visible() {
    if (this.matching) return this.rows.filter((row) => this.matching.has(row.id));
    if (this.plain) return this.rows.filter((row) => this.says(row));
    if (CONDITION.test(this.filter)) return this.rows;
    const words = this.filter.toLowerCase().split(/\s+/).filter(Boolean);
    return this.rows.filter((row) => words.every((word) => text(row).includes(word)));
  }

  // Whether the filter stands in a row as it is.
  says(row) {
    return text(row).includes(this.filter.toLowerCase());
  }

  // Newest first where no column was asked for; what has no value comes last.
  ordered(rows) {
    const { key, down } = this.sort;
    if (!key) return rows;
    const sign = down ? -1 : 1;
    const empty = (value) =>
      value === null ||
      value === undefined ||
      value === "" ||
      (Array.isArray(value) && !value.length);
    return [...rows].sort((a, b) => {
      const [x, y] = [value(a, key), value(b, key)];
      if (empty(x) || empty(y)) return empty(x) - empty(y);
      if (typeof x === "number" && typeof y === "number") return sign * (x - y);
      return sign * String(x).localeCompare(String(y), "en", { numeric: true });
    });
  }

  folded(sweep) {
    return this.folds.get(sweep.id) ?? (this.rows.length > MANY && !sweep.running && !this.filter);
  }

  // Groups, the one with the best first run first; runs of no sweep in between.
  groups(rows) {
    const found = new Map();
    for (const row of rows) {
      const key = row.sweep_id || row.id;
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(row);
    }
    if (!this.sort.key) return [...found].reverse(); // the server gives the oldest first
    return [...found];
  }

  // ---------------------------------------------------------------- drawing

  draw() {
    const rows = this.ordered(this.visible());
    const makers = byId("group").checked
      ? this.inGroups(rows)
      : (this.sort.key ? rows : [...rows].reverse()).map((row) => () => runRow(this, row, false));
    this.hidden = Math.max(0, makers.length - this.drawn);
    const items = makers.slice(0, this.drawn).map((make) => make());
    if (!items.length) items.push(this.nothing());
    this.head(rows);
    byId("runs")
      .querySelector("tbody")
      .replaceChildren(...items);
    byId("count").textContent =
      rows.length === this.rows.length
        ? `${rows.length.toLocaleString("en")} runs`
        : `${rows.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} runs`;
    byId("clear").hidden = !this.picks.size;
    byId("clear").textContent = `Clear ${this.picks.size} chosen`;
  }

  inGroups(rows) {
    const makers = [];
    for (const [key, members] of this.groups(rows)) {
      const sweep = this.sweeps.get(key);
      if (sweep) makers.push(() => sweepRow(this, sweep, members));
      if (!sweep || !this.folded(sweep))
        makers.push(...members.map((row) => () => runRow(this, row, !!sweep)));
    }
    return makers;
  }

  scrolled() {
    const box = byId("runs");
    if (!this.hidden || box.scrollTop + 2 * box.clientHeight < box.scrollHeight) return;
    this.drawn += PAGE;
    this.draw();
  }

  // Another order or choice of rows is seen from its beginning.
  fromTop() {
    this.drawn = PAGE;
    byId("runs").scrollTop = 0;
    this.draw();
  }

  nothing() {
    const text = this.rows.length
      ? "No run fits this filter."
      : "There is no run yet. Start one: python train.py";
    return el("tr", {}, el("td", { colspan: this.columns.length + 1, className: "quiet" }, text));
  }

  head(rows) {
    const every = el("input", {
      type: "checkbox",
      "aria-label": "Choose all runs of this list",
      checked: rows.length > 0 && rows.every((row) => this.picks.has(row.id)),
      onchange: (event) => this.pick(event.target.checked ? rows.map((row) => row.id) : []),
    });
    const cells = this.columns.map((column) => {
      const order = this.sort.key !== column ? "none" : this.sort.down ? "descending" : "ascending";
      const name = el(
        "button",
        { type: "button", data: { focus: column }, onclick: () => this.order(column) },
        title(column),
      );
      return el(
        "th",
        { scope: "col", "aria-sort": order, className: COLUMNS[column]?.number ? "n" : "" },
        name,
      );
    });
    const head = byId("runs").querySelector("thead");
    const focused = head.contains(document.activeElement) && document.activeElement.dataset.focus;
    head.replaceChildren(
      el("tr", {}, el("th", { scope: "col", className: "pick" }, every), ...cells),
    );
    if (focused) head.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  order(column) {
    const number = COLUMNS[column]?.number || column === "started";
    if (this.sort.key !== column) this.sort = { key: column, down: !!number };
    else if (this.sort.down === !!number) this.sort.down = !this.sort.down;
    else this.sort = { key: "", down: true };
    this.fromTop();
  }

  // A row is made anew only where what it shows has changed.
  kept(key, text, make) {
    const before = this.nodes.get(key);
    if (before && before.text === text) return before.node;
    const focused = before?.node.contains(document.activeElement)
      ? document.activeElement.dataset.focus
      : "";
    const node = make();
    this.nodes.set(key, { text, node });
    if (focused)
      requestAnimationFrame(() =>
        node.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus(),
      );
    return node;
  }

  // ---------------------------------------------------------------- choosing

  picked() {
    return this.rows.filter((row) => this.picks.has(row.id));
  }

  pick(ids, show = false) {
    this.picks = new Set(ids);
    this.draw();
    this.on.chosen();
    if (show) byId("panel").scrollIntoView({ block: "nearest" });
  }

  pickSome(ids, chosen) {
    for (const id of ids) chosen ? this.picks.add(id) : this.picks.delete(id);
    this.draw();
    this.on.chosen();
  }

  // With Shift, all rows from the last one clicked.
  clicked(id, event) {
    const chosen = event.target.checked;
    const rows = [...byId("runs").querySelectorAll("tbody tr")];
    const ids = rows.map((node) => this.idOf(node));
    const [from, to] = [ids.indexOf(this.last), ids.indexOf(id)].sort((a, b) => a - b);
    this.last = id;
    this.pickSome(
      event.shiftKey && from >= 0 ? ids.slice(from, to + 1).filter(Boolean) : [id],
      chosen,
    );
  }

  idOf(node) {
    return this.rows.find((row) => this.nodes.get(row.id)?.node === node)?.id;
  }
}

// What words are looked for in.
const text = (row) =>
  [row.name, row.state, row.model, row.data, row.settings, row.sweep, row.path, row.note]
    .concat(row.tags || [])
    .join(" ")
    .toLowerCase();
