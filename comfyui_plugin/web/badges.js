// SPDX-License-Identifier: Apache-2.0
// On each loader: where its file is now, and after a run why it is not where it was asked to be.
import { askFiles, news, where } from "./news.js";
import { keptTab } from "./pill.js";
import { isOn, onChange } from "./settings.js";
import { toastOnce } from "./toast.js";

const MAX_CHARACTERS = 64;
const MIN_SAVED_S = 0.1; // less is noise
const COLOURS = { hot: "#1f5f3f", cold: "#4a5568", loading: "#1d4f91", warn: "#8a5a00" };

// Widget: the folder of models that its file is in.
const FOLDERS = {
  unet_name: "diffusion_models", ckpt_name: "checkpoints", vae_name: "vae",
  control_net_name: "controlnet", clip_name: "text_encoders", clip_name1: "text_encoders",
  clip_name2: "text_encoders", clip_name3: "text_encoders", clip_name4: "text_encoders",
};

const watched = new Set(); // nodes
let files = new Map(); // "kind/name": {bytes, model}, of what is asked for

const valueOf = (node, name) => node.widgets?.find((one) => one.name === name)?.value;

/** The files that a loader has chosen, as "kind/name". */
export function filesOf(node) {
  const kind = valueOf(node, "kind");
  if (node.type === "DistorchResidentFile")
    return valueOf(node, "file") ? [`${kind}/${valueOf(node, "file")}`] : [];
  return (node.widgets ?? []).filter((one) => FOLDERS[one.name] && one.value).map((one) => {
    const folder = /CLIPVision/.test(node.type) ? "clip_vision" : FOLDERS[one.name];
    return `${folder}/${one.value}`;
  });
}

// ---- what a badge says ----

function seconds(nbytes) {
  const { speed } = news.found;
  return speed ? ` · ${(nbytes / speed).toFixed(1)} s` : "";
}

/** {text, kind} of where the files are now, or null. */
function stateOf(node) {
  if (!news.found?.available) return null;
  const all = filesOf(node).map((file) => files.get(file));
  if (all.length === 0 || all.some((one) => !one)) return null;
  const held = new Map(news.found.models.map((one) => [one.id, one]));
  const models = all.map((one) => held.get(one.model));
  const loading = models.filter((one) => one?.state === "loading");
  if (loading.length > 0) {
    const part = loading.reduce((sum, one) => sum + (one.progress ?? 0), 0)
      / loading.reduce((sum, one) => sum + one.bytes, 0);
    return { text: `loading · ${Math.round(100 * part)} %`, kind: "loading" };
  }
  const cold = all.filter((one, i) => models[i]?.state !== "resident");
  if (cold.length > 0)
    return { text: `cold${seconds(cold.reduce((sum, one) => sum + one.bytes, 0))}`, kind: "cold" };
  const places = models.flatMap((one) => one.where).filter((one) => one.bytes > 0);
  const names = [...new Set(places.map((one) => where(one.device)))].sort();
  return { text: `hot · ${names.join(" + ")}`, kind: "hot" };
}

/** Why the last run did not have it as it was asked for, or null. */
function troubleOf(node) {
  const served = node.distorch;
  if (!served || served.files !== filesOf(node).join()) return null; // it was of another file
  const notPlaced = served.lines.find((line) => line.startsWith("not placed"));
  if (notPlaced) return { text: notPlaced, kind: "warn" };
  if (served.tier === "stock") return { text: served.lines.slice(0, 2).join(": "), kind: "warn" };
  return null;
}

/** What the last run did not have to wait for: as long as its file is where it was. */
function savedBy(node, kind) {
  const { saved, files: of } = node.distorch ?? {};
  return kind === "hot" && saved >= MIN_SAVED_S && of === filesOf(node).join()
    ? ` · saved ${saved.toFixed(1)} s` : "";
}

function badgeOf(node) {
  if (!isOn("distorch.badges")) return { text: "", kind: "cold" };
  const found = troubleOf(node) ?? stateOf(node) ?? { text: "", kind: "cold" };
  found.text += savedBy(node, found.kind);
  if (found.text.length <= MAX_CHARACTERS) return found;
  return { ...found, text: `${found.text.slice(0, MAX_CHARACTERS - 1)}…` };
}

function addBadge(node) {
  const Badge = globalThis.LGraphBadge ?? globalThis.LiteGraph?.LGraphBadge;
  if (!Badge || !Array.isArray(node.badges)) return;
  node.badges.push(() => {
    void keptTab()?.distorchDrawn; // pages that make elements of nodes ask again when it changes
    const { text, kind } = badgeOf(node);
    return new Badge({ text, fgColor: "#fff", bgColor: COLOURS[kind] });
  });
}

function draw() {
  let isNew = false;
  for (const node of watched) {
    if (node.graph == null) watched.delete(node);
    const { text } = badgeOf(node);
    isNew ||= text !== node.distorchBadge;
    node.distorchBadge = text;
    node.setDirtyCanvas?.(true, true);
  }
  const tab = keptTab();
  if (isNew && tab) tab.distorchDrawn = (tab.distorchDrawn ?? 0) + 1;
}

// ---- what files there are, and where ----

let asks = null, isDue = false;

async function lookForFiles() {
  const wanted = [...new Set([...watched].flatMap(filesOf))].sort();
  if (wanted.length === 0) return;
  try {
    files = new Map(Object.entries(await askFiles(wanted)));
  } catch {
    files = new Map();
  }
}

/** Ask once for all that changes together. */
export function refreshBadges() {
  isDue = true;
  asks ??= (async () => {
    await new Promise((done) => setTimeout(done, 100));
    while (isDue) {
      isDue = false;
      if (isOn("distorch.badges") && news.found?.available) await lookForFiles();
    }
    asks = null;
    draw();
  })();
}

/** A file's model has an id once it is loaded: then they are asked for again. */
let known = "";
function take() {
  const ids = (news.found.models ?? []).map((one) => one.id).sort().join();
  if (ids !== known || files.size === 0) refreshBadges();
  known = ids;
  draw();
}

// ---- nodes ----

/** Against the cold load that its badge would have told of; null: none was measured. */
function savedOf({ warm }) {
  const speed = news.found?.speed;
  return warm && speed ? warm.bytes / speed - warm.seconds : null;
}

function showServed(node, served) {
  node.distorch = { ...served, files: filesOf(node).join(), saved: savedOf(served) };
  draw();
  if (served.tier === "stock")
    toastOnce("warn", `ComfyUI loads by itself: ${served.lines.slice(1).join("; ")}`);
  for (const line of served.lines) if (line.startsWith("not placed")) toastOnce("warn", line);
}

export function watch(node) {
  const { onExecuted, onWidgetChanged, onAdded, onRemoved, onConfigure } = node;
  node.onExecuted = function (output, ...more) {
    onExecuted?.call(this, output, ...more);
    const served = output?.distorch?.[0];
    if (Array.isArray(served?.lines)) showServed(this, served);
  };
  node.onWidgetChanged = function (...change) {
    onWidgetChanged?.apply(this, change);
    refreshBadges();
  };
  node.onConfigure = function (...how) {
    onConfigure?.apply(this, how);
    refreshBadges();
  };
  node.onAdded = function (...how) {
    onAdded?.apply(this, how);
    watched.add(this);
    if (isOn("distorch.badges")) news.follow();
    refreshBadges();
  };
  node.onRemoved = function (...how) {
    onRemoved?.apply(this, how);
    watched.delete(this);
  };
  if (node.graph) watched.add(node);
  addBadge(node);
}

export function setUpBadges() {
  news.addEventListener("change", take);
  onChange("distorch.badges", (isShown) => {
    if (isShown && watched.size > 0) news.follow();
    refreshBadges();
  });
}
