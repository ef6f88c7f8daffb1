// What is shown of the chosen runs: curves, pictures, differences, and the details of one.
import { confirm } from "./dialog.js";
import { Curves } from "./curves.js";
import { ask, byId, el, short } from "./dom.js";

const TABS = { curves: "Curves", pictures: "Pictures", diff: "Diff", details: "Details" };

export class Panel {
  constructor() {
    this.rows = [];
    this.tab = "curves";
    this.curves = new Curves(byId("content"));
    this.drawsCurves = false;
    this.drawn = ""; // what the tab shows, as text
    this.tabs();
    new ResizeObserver(() => this.resized()).observe(byId("content"));
  }

  know(content) {
    this.curves.palette = content.palette;
    this.cannotStop = content.cannot_stop;
    this.known = new Map(content.rows.map((row) => [row.id, row]));
    this.sweeps = new Map(content.sweeps.map((sweep) => [sweep.id, sweep]));
    if (this.detail) this.detail = this.known.get(this.detail.id) || this.detail;
  }

  tabs() {
    const list = byId("panel").querySelector("[role=tablist]");
    list.replaceChildren(
      ...Object.entries(TABS).map(([name, text]) =>
        el(
          "button",
          {
            type: "button",
            role: "tab",
            id: `tab-${name}`,
            "aria-selected": String(name === this.tab),
            "aria-controls": "content",
            tabIndex: name === this.tab ? 0 : -1,
            onclick: () => this.turn(name),
            onkeydown: (event) => this.arrow(event),
          },
          text,
        ),
      ),
    );
    byId("content").setAttribute("aria-labelledby", `tab-${this.tab}`);
  }

  arrow(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const names = Object.keys(TABS);
    this.turn(names[(names.indexOf(this.tab) + step + names.length) % names.length]);
    byId(`tab-${this.tab}`).focus();
  }

  turn(tab) {
    this.tab = tab;
    this.drawn = "";
    this.tabs();
    this.refresh();
  }

  show(rows) {
    this.rows = rows;
    this.drawn = "";
    this.refresh();
  }

  open(row) {
    this.detail = row;
    this.turn("details");
    byId("panel").scrollIntoView({ block: "nearest" });
  }

  resized() {
    const width = byId("content").clientWidth;
    if (this.width !== width && this.drawsCurves) this.curves.draw(this.curves.runs);
    this.width = width;
  }

  // Ask for what the tab shows, and draw it where it has changed.
  async refresh() {
    const tab = this.tab;
    const ids = this.rows.map((row) => row.id).join(",");
    if (tab !== "curves") this.drawsCurves = false;
    if (tab === "details") return this.refreshDetails();
    if (!ids)
      return this.say(
        "Choose runs with the boxes in the table; their curves, pictures and differences are shown here.",
      );
    try {
      const { content, changed } = await ask(`/api/${tab}`, { ids });
      if (tab !== this.tab || (!changed && this.drawn === `${tab} ${ids}`)) return;
      this.drawn = `${tab} ${ids}`;
      this.drawsCurves = tab === "curves";
      if (tab === "curves") this.curves.draw(content);
      else if (tab === "pictures") this.drawPictures(content);
      else this.drawDiff(content);
    } catch (error) {
      this.say(error.message);
    }
  }

  say(text) {
    if (this.drawn === text) return;
    this.drawn = text;
    this.drawsCurves = false;
    byId("content").replaceChildren(el("p", { className: "quiet" }, text));
  }

  // ---------------------------------------------------------------- pictures and differences

  drawPictures(runs) {
    const names = [...new Set(runs.flatMap((run) => run.files.map((file) => file.name)))];
    const first = ["confusion_matrix.png", "curves.png"];
    names.sort((a, b) => first.indexOf(b) - first.indexOf(a) || a.localeCompare(b));
    const parts = names.map((name) =>
      el(
        "section",
        {},
        el("h3", {}, name),
        el("div", { className: "pictures" }, ...runs.map((run) => picture(run, name))),
      ),
    );
    if (!parts.length)
      parts.push(
        el(
          "p",
          { className: "quiet" },
          "These runs have no pictures yet: most are drawn when a run ends (callbacks=[default,pictures] draws more).",
        ),
      );
    byId("content").replaceChildren(...parts);
  }

  drawDiff(diff) {
    const head = el(
      "tr",
      {},
      el("th", { scope: "col" }, ""),
      ...diff.names.map((name) => el("th", { scope: "col" }, name)),
    );
    const line = ([key, ...values]) =>
      el("tr", {}, el("th", { scope: "row" }, key), ...values.map((value) => el("td", {}, value)));
    const part = ({ title, lines, notes }) => [
      el("h3", {}, title),
      ...(lines.length
        ? [
            el(
              "div",
              { className: "scroll", tabIndex: 0, role: "region", "aria-label": title },
              el(
                "table",
                { className: "diff" },
                el("thead", {}, head.cloneNode(true)),
                el("tbody", {}, ...lines.map(line)),
              ),
            ),
          ]
        : []),
      ...notes.map((note) => el("p", { className: "quiet" }, note)),
    ];
    const configs = diff.sections.some((section) => section.title === "config")
      ? []
      : [el("p", {}, "All settings are the same.")];
    const left = diff.left_out.length
      ? [
          el(
            "p",
            { className: "quiet" },
            `Left out, since they have not begun: ${diff.left_out.join(", ")}.`,
          ),
        ]
      : [];
    byId("content").replaceChildren(...configs, ...diff.sections.flatMap(part), ...left);
  }

  // ---------------------------------------------------------------- one run

  async refreshDetails() {
    const row = this.detail || this.rows[0];
    if (!row) return this.say("Click on the name of a run.");
    try {
      const { content, changed } = await ask("/api/run", { id: row.id });
      if (this.tab !== "details" || (!changed && this.drawn === `details ${row.id} ${row.state}`))
        return;
      this.drawn = `details ${row.id} ${row.state}`;
      this.drawDetails(content);
    } catch (error) {
      this.say(error.message);
    }
  }

  drawDetails(run) {
    const link = (file) =>
      el(
        "li",
        {},
        el("a", { href: address(run.id, file.name), target: "_blank", rel: "noopener" }, file.name),
        ` ${short(file.bytes)}B`,
      );
    const buttons = [];
    const button = (text, action) =>
      el(
        "button",
        {
          type: "button",
          "aria-label": `${text} ${run.name}`,
          onclick: () => confirm(action, run.id),
        },
        text,
      );
    const row = this.known?.get(run.id);
    if (run.state === "running" && !this.cannotStop) buttons.push(button("Stop", "stop"));
    if (["interrupted", "died", "failed"].includes(run.state) && !row?.sweep_id)
      buttons.push(button("Resume", "resume"));
    byId("content").replaceChildren(
      el("h3", {}, run.name),
      el(
        "p",
        {},
        el("span", { className: "state", data: { state: run.state } }, run.state),
        ` ${run.reason}`,
      ),
      el("p", { className: "quiet" }, run.path),
      ...(run.command ? [el("pre", { tabIndex: 0, "aria-label": "Command" }, run.command)] : []),
      el("div", { className: "buttons" }, ...buttons),
      el("ul", { className: "files" }, ...run.files.map(link)),
      ...(run.log
        ? [
            el("h3", {}, `The end of ${run.log}`),
            el(
              "pre",
              { className: "log", tabIndex: 0, "aria-label": `The end of ${run.log}` },
              run.tail.join("\n"),
            ),
          ]
        : []),
    );
    const log = byId("content").querySelector(".log");
    if (log) log.scrollTop = log.scrollHeight;
  }
}

const address = (id, name) => `/file?${new URLSearchParams({ id, name })}`;

function picture(run, name) {
  const file = run.files.find((candidate) => candidate.name === name);
  const image = file
    ? el(
        "a",
        { href: address(run.id, name), target: "_blank", rel: "noopener" },
        el("img", {
          src: `${address(run.id, name)}&v=${file.version}`,
          alt: `${name} of ${run.name}`,
          loading: "lazy",
        }),
      )
    : el("p", { className: "quiet" }, "none yet");
  return el("figure", {}, image, el("figcaption", {}, run.name));
}
