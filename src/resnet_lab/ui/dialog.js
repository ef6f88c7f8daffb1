// Stop and resume: what will happen is said, and done once it is confirmed.
import { act, ask, byId, el, say } from "./dom.js";

const dialog = byId("dialog");

export async function confirm(action, id) {
  let plan;
  try {
    plan = (await ask("/api/plan", { action, id })).content;
  } catch (error) {
    show(action === "stop" ? "It is not stopped" : "It is not resumed", [error.message], "", []);
    return;
  }
  const go = el(
    "button",
    { type: "button", className: "strong", onclick: () => perform(action, id, plan) },
    plan.button,
  );
  show(plan.title, plan.sentences, plan.words, [go]);
}

function show(title, sentences, command, buttons) {
  const cancel = el(
    "button",
    { type: "button", autofocus: true, onclick: () => dialog.close() },
    buttons.length ? "Cancel" : "Close",
  );
  dialog.replaceChildren(
    el("h2", { id: "dialog-title" }, title),
    ...sentences.map((sentence) => el("p", {}, sentence)),
    ...(command ? [el("pre", {}, command)] : []),
    el("div", { className: "buttons" }, cancel, ...buttons),
  );
  dialog.showModal();
}

async function perform(action, id, plan) {
  dialog.close();
  try {
    say(await act(action, id, plan.confirm));
  } catch (error) {
    say(error.message, "bad");
  }
}
