// SPDX-License-Identifier: Apache-2.0
// In ComfyUI's own dialog. What is read where is named beside it.
import { app } from "../../scripts/app.js";

const listeners = new Map();

// the page tells of a change before it has taken it
const changed = (id) => (value) => setTimeout(() =>
  listeners.get(id)?.forEach((listener) => listener(value)));

const setting = (group, id, name, tooltip, how) => ({
  id, name, tooltip, category: ["distorchd", group, name], onChange: changed(id), ...how,
});

const ON = { type: "boolean", defaultValue: true };
const OFF = { type: "boolean", defaultValue: false };
const slider = (defaultValue, max, step) =>
  ({ type: "slider", defaultValue, attrs: { min: 0, max, step } });
const choice = (defaultValue, options) => ({ type: "combo", defaultValue, options });

export const settings = [
  // read by the pack on the server
  setting("Memory", "distorch.enable", "Use distorchd",
          "Off: all loaders load as ComfyUI's own do, without a restart.", ON),
  setting("Memory", "distorch.prewarm", "Load models when a prompt is queued",
          "What its loaders will want comes into RAM while earlier nodes run, where there is room.",
          ON),
  setting("Memory", "distorch.pinUsed", "Pin models once they are used",
          "What a loader has loaded stays in memory until somebody unpins it.", OFF),
  setting("Memory", "distorch.onUnload", "When ComfyUI unloads its models",
          "At the end of a prompt, by Unload Models and by Free Memory. What is kept or pinned stays.",
          choice("ram", [{ text: "Keep in place", value: "keep" },
                         { text: "Drop to RAM", value: "ram" },
                         { text: "Drop all", value: "all" }])),
  setting("Daemon", "distorch.socket", "Socket of the daemon",
          "Empty: the user's, then the system's. For the next connection: restart ComfyUI.",
          { type: "text", defaultValue: "" }),
  setting("Daemon", "distorch.logLevel", "What is logged",
          "Lines of the pack in ComfyUI's log.",
          choice("comfyui", [{ text: "As ComfyUI", value: "comfyui" },
                             { text: "All", value: "debug" },
                             { text: "What was done", value: "info" },
                             { text: "Warnings", value: "warning" }])),
  setting("Page", "distorch.refresh", "Seconds between updates",
          "Of what the page shows, at least 0.5. 0: only when it is opened, and while the tab is.",
          slider(1, 10, 0.5)),
  // read by the page
  setting("Page", "distorch.pill", "Show memory in the top bar",
          "How much of RAM and of all cards distorchd uses. Older pages: a percentage on the tab's icon.",
          ON),
  setting("Page", "distorch.pillWidth", "Width of it at most",
          "In pixels. 0: as wide as its text.", slider(0, 400, 10)),
  setting("Page", "distorch.badges", "Show badges on loaders",
          "Where each loader's file is now: hot, cold, how long it takes.", ON),
  setting("Page", "distorch.toasts", "Show messages",
          "Why a loader was not served, what was unloaded, what a crashed ComfyUI left.", ON),
  setting("Page", "distorch.tellEvictions", "Show a message when a model is evicted",
          "Which, from where and why.", OFF),
].map((one, i, all) => ({ ...one, sortOrder: all.length - i })); // the page shows the highest first

/** What the user has set; what it is until then, where the page does not say. */
export const settingOf = (id) => app.extensionManager?.setting?.get?.(id)
  ?? settings.find((one) => one.id === id).defaultValue;

export const isOn = (id) => settingOf(id) !== false;

export function onChange(id, listener) {
  listeners.set(id, [...(listeners.get(id) ?? []), listener]);
}
