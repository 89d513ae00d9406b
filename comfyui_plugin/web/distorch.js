// SPDX-License-Identifier: Apache-2.0
// What the page has of distorchd: badges on loaders, the way in and out, memory in the top bar, a
// sidebar tab, messages, settings.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { setUpBadges, watch } from "./badges.js";
import { commands } from "./commands.js";
import { ask, news } from "./news.js";
import { eventText, freeAll, renderPanel, warmText } from "./panel.js";
import { TAB, actionBarButtons, setUpPill } from "./pill.js";
import { isOn, onChange, settings } from "./settings.js";
import { addStyle } from "./style.js";
import { TO_OURS, TO_STOCK, graphsOf, isOurs, nodesOf, swap } from "./swap.js";
import { toast, toastWithButton } from "./toast.js";

const KNOWN = "DistorchVAELoader"; // a node of this pack, whatever its folder is called

// ---- into it and out again ----

const several = (n, one, more = `${one}s`) => `${n} ${n === 1 ? one : more}`;

function swapAll(types, done, nothing) {
  const all = () => graphsOf(app).flatMap((graph) => [...nodesOf(graph)]);
  const { n, nLeft, nOut } = swap(app, all(), types);
  const lines = [n > 0 ? `${done}: ${several(n, "loader")}` : nothing];
  if (nOut > 0) lines.push(`${several(nOut, "node that manages", "nodes that manage")} taken out`);
  if (nLeft > 0) lines.push(`${nLeft} could not be swapped and stay as they are`);
  if (types === TO_STOCK) {
    const others = all().filter((node) => isOurs(node.type) && !TO_STOCK.has(node.type)).length;
    if (others > 0)
      lines.push(`${several(others, "other node")} of distorch without a counterpart in ComfyUI`);
  }
  toast(nLeft > 0 ? "warn" : "info", lines.join("; "), { isAnswer: true });
}

function menuItems(node) {
  for (const [types, content] of [[TO_OURS, "Serve from distorchd"],
                                  [TO_STOCK, "Back to the stock loader"]])
    if (types.has(node.type))
      return [{ content, callback: () => void swap(app, [node], types) }];
  return [];
}

/** The front ends that ask no extension for items ask the node. */
function addMenu(node) {
  if (typeof app.collectNodeMenuItems === "function") return;
  const before = node.getExtraMenuOptions;
  node.getExtraMenuOptions = function (canvas, options) {
    const found = before?.call(this, canvas, options);
    options.push(...menuItems(this));
    return found;
  };
}

// ---- what is held ----

function addTab() {
  app.extensionManager?.registerSidebarTab?.({
    id: TAB,
    icon: "pi pi-database",
    title: "distorchd",
    tooltip: "What distorchd holds",
    type: "custom",
    iconBadge: null,
    distorchPill: null, // see pill.js
    distorchDrawn: 0,
    render: renderPanel,
    destroy: () => renderPanel(null),
  });
}

function tellOfUnloads() {
  api.addEventListener("distorch.unloaded", ({ detail }) => {
    if (detail?.text) toast("info", detail.text);
  });
  const told = new Set();
  news.addEventListener("left", ({ detail }) => {
    const models = detail.filter((one) => !told.has(one.id));
    if (models.length === 0
        || !toastWithButton("info", warmText(models), "Free", () => void freeAll(models))) return;
    for (const one of models) told.add(one.id);
    void ask("told", { models: models.map((one) => one.id) }).catch(() => {}); // so it is told again
  });
}

function tellOfEvictions() {
  const id = "distorch.tellEvictions";
  let last = null; // the time of the last one that is known of
  news.addEventListener("change", () => {
    if (!news.found.available) return;
    const evicted = news.found.last.filter((one) => one.type === "evicted");
    const fresh = evicted.filter((one) => last !== null && one.time_ms > last);
    last = Math.max(last ?? 0, ...evicted.map((one) => one.time_ms));
    if (fresh.length > 0 && isOn(id)) toast("info", fresh.map(eventText).join("\n"));
  });
  onChange(id, (isTold) => isTold && news.follow());
  if (isOn(id)) news.follow();
}

/** The server reads the switch, and the page tells of it before it is saved. */
function followSwitch() {
  onChange("distorch.enable", async (isUsed) => {
    for (let i = 0; i < 10 && news.found !== null; i += 1) {
      await new Promise((done) => setTimeout(done, 300));
      await news.refresh();
      if (Boolean(news.found.is_off) !== isUsed) return;
    }
  });
}

// ---- the pack's nodes ----

const packOf = (type) => globalThis.LiteGraph?.registered_node_types?.[type]?.nodeData?.python_module;

function isLoader(type) {
  if (TO_OURS.has(type)) return false;
  return /Load/.test(type) || type === "DistorchResidentFile";
}

app.registerExtension({
  name: "distorch",
  settings,
  get actionBarButtons() {
    return actionBarButtons();
  },
  commands: [
    {
      id: "distorch.serve",
      label: "Serve this workflow from distorchd",
      icon: "pi pi-database",
      function: () => swapAll(TO_OURS, "Served from distorchd",
                              "No stock loader that distorchd can stand in for is in this workflow"),
    },
    {
      id: "distorch.stock",
      label: "Back to stock loaders",
      icon: "pi pi-undo",
      function: () => swapAll(TO_STOCK, "ComfyUI's own again",
                              "No loader of distorch is in this workflow"),
    },
    ...commands,
  ],
  menuCommands: [{ path: ["Extensions", "distorchd"],
                   commands: ["distorch.serve", "distorch.stock",
                              ...commands.map((one) => one.id)] }],
  getNodeMenuItems: menuItems,
  setup() {
    addStyle();
    addTab();
    tellOfUnloads();
    tellOfEvictions();
    followSwitch();
    setUpPill();
    setUpBadges();
  },
  nodeCreated(node) {
    const type = node.comfyClass ?? node.type;
    const isOfPack = packOf(type) !== undefined && packOf(type) === packOf(KNOWN);
    if (isOfPack && isLoader(type)) watch(node);
    if (TO_OURS.has(type) || TO_STOCK.has(type)) addMenu(node);
  },
});
