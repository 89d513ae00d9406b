// SPDX-License-Identifier: Apache-2.0
// How full memory is: in the top bar where the page takes buttons of extensions there, else a
// percentage on the icon of the sidebar tab.
import { app } from "../../scripts/app.js";
import { loading } from "./loading.js";
import { news } from "./news.js";
import { isOn, onChange, settingOf } from "./settings.js";

export const TAB = "distorch";
const GIB = 2 ** 30;
const RECENT_MS = 60000;
const ICON = "pi pi-database";

const gib = (nbytes) => {
  const value = nbytes / GIB;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
};

const total = (devices, member) => devices.reduce((sum, one) => sum + one[member], 0);

function isRecent(types) {
  return news.found.last.some((one) => types.includes(one.type)
                              && Date.now() - one.time_ms < RECENT_MS);
}

/** {text, tooltip, state}: state is absent, ok, pressed or ill. */
export function pill() {
  const { found } = news;
  if (found === null) return { text: "distorchd …", tooltip: "distorchd", state: "absent" };
  if (!found.available)
    return { text: found.is_off ? "distorchd off" : "no distorchd", state: "absent",
             tooltip: `distorchd is ${found.is_off ? "off" : "not there"}: ${found.reason}` };
  const cards = found.devices.filter((one) => one.name !== "cpu");
  const parts = found.devices.filter((one) => one.name === "cpu")
    .map((one) => ["RAM", [one]]);
  if (cards.length > 0) parts.push(["VRAM", cards]);
  const texts = parts.map(([word, devices]) =>
    `${word} ${gib(total(devices, "used"))}/${gib(total(devices, "budget"))}`);
  const ill = found.devices.filter((one) => one.state !== "ok");
  const state = ill.length > 0 || isRecent(["refused", "quarantined"]) ? "ill"
    : isRecent(["evicted"]) ? "pressed" : "ok";
  const more = ill.map((one) => `${one.name}: ${one.text ?? one.state}`);
  const loads = loading();
  if (loads) more.push(loads.full);
  const n = found.hits + found.misses;
  if (n > 0) more.push(`⚡ ${Math.floor(100 * found.hits / n)} % of requests found their model in `
                       + "memory");
  return { text: [...texts, ...(loads ? [loads.text] : [])].join("  "), state,
           tooltip: [`distorchd: ${texts.join(", ")} GiB`, ...more].join(". "),
           percent: Math.round(Math.max(0, ...parts.map(([, devices]) =>
             100 * total(devices, "used") / (total(devices, "budget") || 1)))) };
}

/** The tab as the page keeps it: what changes there is drawn again, also what was made of it. That is
 * the one thing that both pages watch and an extension may write to. */
export const keptTab = () => app.extensionManager?.getSidebarTabs?.().find((one) => one.id === TAB)
  ?? app.extensionManager?.sidebarTab?.sidebarTabs?.find((one) => one.id === TAB);

export const openTab = () => app.extensionManager?.sidebarTab?.toggleSidebarTab?.(TAB);

let hasTopBar = false; // the page has asked for buttons

/** For the extension's member of that name. */
export function actionBarButtons() {
  if (!hasTopBar) {
    hasTopBar = true;
    queueMicrotask(draw);
  }
  const shown = keptTab()?.distorchPill;
  return shown ? [{ icon: ICON, label: shown.text, tooltip: shown.tooltip, onClick: openTab,
                    class: `distorch-pill distorch-${shown.state}` }] : [];
}

function draw() {
  const tab = keptTab();
  if (!tab) return;
  const shown = isOn("distorch.pill") ? pill() : null;
  if (JSON.stringify(tab.distorchPill) !== JSON.stringify(shown)) tab.distorchPill = shown;
  const badge = shown === null || hasTopBar ? null
    : shown.state === "absent" ? (news.found === null ? null : "off") : `${shown.percent}%`;
  if (tab.iconBadge !== badge) tab.iconBadge = badge;
  const tooltip = shown === null || hasTopBar ? "What distorchd holds" : shown.tooltip;
  if (tab.tooltip !== tooltip) tab.tooltip = tooltip;
}

const setWidth = (pixels) => document.documentElement.style.setProperty(
  "--distorch-pill-width", pixels > 0 ? `${pixels}px` : "none");

let calm; // when what was recent is no more

export function setUpPill() {
  news.addEventListener("change", () => {
    draw();
    clearTimeout(calm);
    if (news.found.available && news.found.last.some((one) => Date.now() - one.time_ms < RECENT_MS))
      calm = setTimeout(draw, RECENT_MS + 1000);
  });
  onChange("distorch.pill", (isShown) => {
    if (isShown) news.follow();
    draw();
  });
  onChange("distorch.pillWidth", setWidth);
  setWidth(settingOf("distorch.pillWidth"));
  if (isOn("distorch.pill")) news.follow();
  draw();
}
