for (const table of document.querySelectorAll("table.sortable")) {
  const row = table.tHead.lastElementChild;
  row.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head) return;
    const up = head.ariaSort !== "ascending";
    for (const other of row.cells) other.removeAttribute("aria-sort");
    head.ariaSort = up ? "ascending" : "descending";
    const value = (line) => line.cells[head.cellIndex].dataset.sort ?? line.cells[head.cellIndex].textContent;
    const compare = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
    const number = (line) => (value(line) === "" ? NaN : Number(value(line)));
    const order = (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || compare(a, b);
      return up ? x - y : y - x;
    };
    const lines = [...table.tBodies[0].rows];
    const numeric = lines.some((line) => !Number.isNaN(number(line)));
    lines.sort(numeric ? order : (a, b) => (up ? compare(a, b) : compare(b, a)));
    table.tBodies[0].append(...lines);
  });
}
