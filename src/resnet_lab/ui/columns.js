// The columns of the table: their titles, their values, and how these are written.
import { duration, percent, short } from "./dom.js";

const digits = (number) => (typeof number === "number" ? number.toPrecision(4) : "");
const when = (text) => (text ? new Date(text).toLocaleString("sv").slice(0, 16) : "");
export const COLUMNS = {
  name: { title: "run", text: (row) => row.name },
  state: { title: "state", text: (row) => row.state },
  epochs: { title: "epochs", text: epochs, number: true },
  model: { title: "model" },
  data: { title: "data" },
  settings: { title: "settings" },
  seed: { title: "seed", number: true },
  "val/acc": { title: "val acc %", text: (row) => percent(row["val/acc"]), number: true },
  "test/acc": { title: "test acc %", text: (row) => percent(row["test/acc"]), number: true },
  "val/loss": { title: "val loss", text: (row) => digits(row["val/loss"]), number: true },
  "test/loss": { title: "test loss", text: (row) => digits(row["test/loss"]), number: true },
  train_seconds: { title: "training", text: (row) => duration(row.train_seconds), number: true },
  seconds: { title: "whole time", text: (row) => duration(row.seconds), number: true },
  best_epoch: { title: "best epoch", number: true },
  batch_size: { title: "batch", number: true },
  params: { title: "parameters", number: true },
  macs: { title: "multiply-adds", number: true },
  images_per_second: { title: "images/s", number: true },
  started: { title: "started", text: (row) => when(row.started) },
  device_name: { title: "device" },
  precision: { title: "precision" },
  commit: { title: "commit", text: (row) => (row.commit || "").slice(0, 10) },
  tags: { title: "tags", text: (row) => (row.tags || []).join(" ") },
  note: { title: "note" },
  sweep: { title: "sweep" },
  path: { title: "folder" },
};
export const WIDE = [
  "name",
  "state",
  "epochs",
  "model",
  "data",
  "settings",
  "val/acc",
  "test/acc",
  "train_seconds",
  "started",
];
export const NARROW = ["name", "state", "epochs", "val/acc", "test/acc"];

function epochs(row) {
  const done = row.progress ? row.progress.epoch : row.epochs;
  return row.max_epochs ? `${done ?? 0}/${row.max_epochs}` : String(done ?? "");
}

// What a column is ordered by.
export function value(row, column) {
  if (column === "epochs") return row.progress ? row.progress.epoch : row.epochs;
  return COLUMNS[column] ? row[column] : (row.config || {})[column];
}

export const title = (column) => COLUMNS[column]?.title || column;

export function cellText(row, column) {
  const known = COLUMNS[column];
  if (!known) return String((row.config || {})[column] ?? "");
  return known.text ? known.text(row) : short(row[column]);
}
