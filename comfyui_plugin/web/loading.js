// SPDX-License-Identifier: Apache-2.0
// The loads that run now: how far they are, how fast, how long it takes. By what the server tells.
import { news, size } from "./news.js";

const FIRST_MS = 400; // what is measured over less is no speed
const MB = 1e6;

let begun = new Map(); // id: {at, bytes} when the first of it was about to come

function note() {
  const now = performance.now();
  const loads = (news.found?.models ?? []).filter((one) => one.state === "loading");
  begun = new Map(loads.map((one) =>
    [one.id, one.progress && begun.get(one.id) || { at: now, bytes: one.progress ?? 0 }]));
  return loads;
}

function speedOf(load) {
  const { at, bytes } = begun.get(load.id);
  const ms = performance.now() - at;
  const read = (load.progress ?? 0) - bytes;
  return ms >= FIRST_MS && read > 0 ? read * 1000 / ms : null;
}

function rate(bytes) {
  return bytes >= 100 * MB ? `${(bytes / 1000 / MB).toFixed(1)} GB/s`
    : `${(bytes / MB).toFixed(1)} MB/s`;
}

/** {text, full}: a few characters, and in words; null: nothing is loaded. */
export function loading() {
  const loads = note();
  if (loads.length === 0) return null;
  const read = loads.reduce((sum, one) => sum + (one.progress ?? 0), 0);
  const all = loads.reduce((sum, one) => sum + one.bytes, 0);
  const speeds = loads.map(speedOf).filter((one) => one !== null);
  const speed = speeds.length > 0 ? speeds.reduce((sum, one) => sum + one) : null;
  const left = speed === null ? null : `${Math.ceil((all - read) / speed)} s`;
  const percent = `${Math.floor(100 * read / (all || 1))} %`;
  return { text: ["loading", percent, left].filter(Boolean).join(" "),
           full: [`loading ${loads.map((one) => one.name ?? one.id).join(", ")}: `
                  + `${size(read)} of ${size(all)}`, speed && rate(speed), left && `${left} left`]
             .filter(Boolean).join(", ") };
}
