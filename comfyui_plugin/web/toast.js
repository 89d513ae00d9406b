// SPDX-License-Identifier: Apache-2.0
// Messages, in ComfyUI's own way.
import { app } from "../../scripts/app.js";
import { isOn } from "./settings.js";

const SUMMARY = "distorchd";
const FIND_MS = 2000;
const said = new Set();

/** What somebody has just asked for is told of in any case: `isAnswer`. */
export function toast(severity, detail, { life = 8000, isAnswer = false } = {}) {
  if (!isAnswer && !isOn("distorch.toasts")) return false;
  const shown = app.extensionManager?.toast;
  if (shown?.add) shown.add({ severity, summary: SUMMARY, detail, life });
  else console.info(`${SUMMARY}: ${detail}`);
  return true;
}

/** The same text once. */
export function toastOnce(severity, detail) {
  if (said.has(detail)) return;
  said.add(detail);
  toast(severity, detail);
}

function elementOf(detail) {
  return [...document.querySelectorAll(".p-toast-message")]
    .find((one) => one.textContent.includes(detail));
}

/** With a button. ComfyUI's messages have none, so it is put into the one that has the text. Whether
 * it was shown at all. */
export function toastWithButton(severity, detail, label, action) {
  const isShown = toast(severity, detail, { life: 30000 });
  if (isShown) void addButton(detail, label, action);
  return isShown;
}

async function addButton(detail, label, action) {
  const end = Date.now() + FIND_MS;
  let shown = elementOf(detail);
  while (!shown && Date.now() < end) {
    await new Promise((done) => setTimeout(done, 50));
    shown = elementOf(detail);
  }
  const text = shown?.querySelector(".p-toast-message-text") ?? shown;
  if (!text) return; // the sidebar has the same
  const button = document.createElement("button");
  button.type = "button";
  button.className = "distorch-button";
  button.textContent = label;
  button.addEventListener("click", () => {
    button.disabled = true;
    action();
    shown.querySelector(".p-toast-close-button, .p-toast-icon-close")?.click();
  });
  text.append(button);
}
