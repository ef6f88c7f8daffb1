// Elements, questions to the server, and how numbers are written.

// Every text goes in as a text node: names and notes come from anybody.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  set(node, properties);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function set(node, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") || name === "role" || name === "colspan")
      node.setAttribute(name, value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node[name] = value;
  }
}

export const byId = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the server

const seen = new Map(); // address without values -> the last answer's tag and content

// The server's answer, and whether it differs from the last one to this question.
export async function ask(path, values = {}) {
  const address = `${path}?${new URLSearchParams(values)}`;
  const response = await fetch(address, { cache: "no-cache" });
  const tag = response.headers.get("ETag");
  const before = seen.get(path);
  if (response.ok && before && before.address === address && before.tag === tag)
    return { content: before.content, changed: false };
  const content = await response.json();
  if (!response.ok) throw new Error(content.error || "The server does not answer.");
  seen.set(path, { address, tag, content });
  return { content, changed: true };
}

export async function act(action, id, confirm) {
  const response = await fetch(`/api/do/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Resnet-Lab": "1" },
    body: JSON.stringify({ id, confirm }),
  });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content.done;
}

export function say(sentence, kind = "") {
  const line = el("p", { className: kind }, sentence);
  const close = () => line.remove();
  line.append(
    el("button", { type: "button", "aria-label": "Close this message", onclick: close }, "×"),
  );
  const others = [...byId("messages").children].map((other) => other.firstChild.data);
  if (!others.includes(sentence)) byId("messages").append(line);
}

// ---------------------------------------------------------------- numbers

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "";
  const whole = Math.max(0, Math.round(seconds));
  const pair = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${pair(minutes)}:${pair(whole % 60)}` : `${minutes}:${pair(whole % 60)}`;
}

export function short(number) {
  if (typeof number !== "number")
    return number === null || number === undefined ? "" : String(number);
  for (const [size, letter] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ])
    if (Math.abs(number) >= size) return `${Number((number / size).toPrecision(3))} ${letter}`;
  return String(Number(number.toPrecision(4)));
}

export const percent = (share) => (typeof share === "number" ? (100 * share).toFixed(2) : "");

// Seconds until a run has trained its last epoch; null where nobody knows.
export function left(row) {
  const { epoch, at, pace } = row.progress || {};
  if (!pace || !row.max_epochs) return null;
  return Math.max(0, pace * (row.max_epochs - epoch) - (at ? Date.now() / 1000 - at : 0));
}
