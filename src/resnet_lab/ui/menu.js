// The menu of columns: which of them the table shows, config keys included; the browser keeps it.
import { COLUMNS, NARROW, WIDE, title } from "./columns.js";
import { ask, byId, el } from "./dom.js";

const usual = () => (innerWidth < 700 ? NARROW : WIDE);

export class Menu {
  constructor(changed) {
    this.changed = changed;
    this.host = byId("columns");
    const saved = JSON.parse(localStorage.getItem("columns") || "null");
    this.shown = Array.isArray(saved) ? saved.map(String) : usual();
    this.host.addEventListener("toggle", () => this.fill());
    document.addEventListener("click", (event) => {
      if (!event.composedPath().includes(this.host)) this.host.open = false;
    });
    this.host.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.host.open = false;
    });
  }

  // Config keys that are shown.
  keys() {
    return this.shown.filter((column) => !COLUMNS[column]);
  }

  async fill() {
    if (!this.host.open) return;
    const host = this.host.querySelector("div");
    const box = (column) =>
      el(
        "label",
        { className: "box" },
        el("input", {
          type: "checkbox",
          checked: this.shown.includes(column),
          disabled: column === "name",
          onchange: (event) => this.toggle(column, event.target.checked),
        }),
        title(column),
      );
    const keys = el("datalist", { id: "keys" });
    const input = el("input", {
      type: "text",
      "aria-label": "Add a config key as a column",
      placeholder: "config key: optimizer.lr",
      autocomplete: "off",
      spellcheck: false,
    });
    input.setAttribute("list", "keys");
    const add = () => {
      if (input.value.trim()) this.toggle(input.value.trim(), true);
      this.fill();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") add();
    });
    const own = this.shown.filter((column) => !COLUMNS[column]);
    host.replaceChildren(
      ...own.map(box),
      ...Object.keys(COLUMNS).map(box),
      el(
        "div",
        { className: "add" },
        input,
        el("button", { type: "button", onclick: add }, "Add"),
        keys,
      ),
      el("button", { type: "button", onclick: () => this.set(usual()) }, "As at first"),
    );
    const found = (await ask("/api/keys")).content;
    keys.replaceChildren(...found.map((key) => el("option", { value: key })));
  }

  toggle(column, shown) {
    const others = this.shown.filter((other) => other !== column);
    this.set(shown ? [...others, column] : others);
  }

  set(columns) {
    this.shown = columns;
    localStorage.setItem("columns", JSON.stringify(columns));
    this.changed();
    this.fill();
  }
}
