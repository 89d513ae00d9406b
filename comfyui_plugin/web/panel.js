// SPDX-License-Identifier: Apache-2.0
// The sidebar tab: what the daemon holds and where, who uses it, what happened, and a way to change
// it. Names come from elsewhere: they are only ever set as text.
import { api } from "../../scripts/api.js";
import { Doctor } from "./doctor.js";
import { ask, news, size, where } from "./news.js";
import { openTab } from "./pill.js";
import { make } from "./style.js";
import { toast } from "./toast.js";

const REFRESH_MS = 5000; // what comes without an event: who else uses a model
const KINDS_FIRST = ["diffusion_models", "checkpoints", "text_encoders", "vae"];
const DEVICES_LIST = "distorch-devices";

const answer = (severity, detail) => toast(severity, detail, { isAnswer: true });

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Elements of a list, each made once and then changed: focus and what is typed stay. */
class Rows {
  constructor(root, keyOf, Row) {
    Object.assign(this, { root, keyOf, Row, rows: new Map() });
  }

  draw(items) {
    const wanted = new Map(items.map((item) => [this.keyOf(item), item]));
    for (const [key, row] of this.rows) {
      if (wanted.has(key)) continue;
      row.root.remove();
      this.rows.delete(key);
    }
    let before = null;
    for (const [key, item] of wanted) {
      const row = this.rows.get(key) ?? new this.Row(item);
      this.rows.set(key, row);
      row.draw(item);
      const place = before ? before.nextSibling : this.root.firstChild;
      if (place !== row.root) this.root.insertBefore(row.root, place);
      before = row.root;
    }
  }
}

class DeviceRow {
  constructor() {
    this.name = make("span", { class: "name" });
    this.what = make("span", { class: "dim" });
    this.trouble = make("div", { class: "trouble" });
    this.bar = make("progress");
    this.root = make("div", {}, make("div", { class: "device" }, this.name, this.what), this.bar,
                     this.trouble);
  }

  draw(device) {
    const name = where(device.name) + (device.product ? ` · ${device.product}` : "");
    const what = `${size(device.used)} of ${size(device.budget)}`;
    setText(this.name, name);
    setText(this.what, what);
    setText(this.trouble, device.state === "ok" ? "" : device.text ?? device.state);
    this.bar.max = device.budget || 1;
    this.bar.value = device.used;
    this.bar.setAttribute("aria-label", `${name}: ${what}`);
  }
}

function usersOf(model) {
  const users = model.users.map((one) => (one.is_me ? "this ComfyUI" : `${one.comm} ${one.pid}`));
  if (users.length > 0) return `used by ${[...new Set(users)].join(", ")}`;
  return model.leases > 0 ? "in use" : "";
}

class ModelRow {
  constructor(model) {
    this.name = make("div", { class: "name" });
    this.what = make("div", { class: "dim" });
    this.bar = make("progress", { hidden: "" });
    this.trouble = make("div", { class: "trouble", role: "alert" });
    this.pin = this.button("pin", "Never evict it", () => this.wish("pin", this.model.pinned));
    this.keep = this.button("keep", "Leave it when others are unloaded",
                            () => this.wish("keep", this.model.keep));
    this.unload = this.button("unload", "Free its memory", () => this.free());
    this.place = this.button("place…", "Say where its blocks lie", () => this.togglePlace());
    this.form = this.placeForm();
    this.root = make("div", { class: "model", role: "listitem" }, this.name, this.what, this.bar,
                     make("div", {}, this.pin, this.keep, this.unload, this.place), this.form,
                     this.trouble);
    this.draw(model);
  }

  button(text, title, action) {
    const made = make("button", { type: "button", title }, text);
    made.addEventListener("click", action);
    return made;
  }

  placeForm() {
    this.allocation = make("input", { type: "text", placeholder: "cuda:0,6gb;cpu,*",
                                      list: DEVICES_LIST, spellcheck: "false" });
    const form = make("form", { hidden: "" }, make("label", {}, "Allocation", this.allocation),
                      make("button", { type: "submit" }, "place"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.try(async () => {
        const moved = await ask("place", { model: this.model.id,
                                           allocation: this.allocation.value });
        answer("success", `${this.title} placed: ${places(moved.model)}`);
        form.hidden = true;
        this.place.setAttribute("aria-expanded", "false");
        this.place.focus();
      }, form.querySelector("button"));
    });
    return form;
  }

  get title() {
    return this.model.name ?? this.model.id;
  }

  togglePlace() {
    this.form.hidden = !this.form.hidden;
    this.place.setAttribute("aria-expanded", String(!this.form.hidden));
    setText(this.trouble, "");
    if (this.form.hidden) return;
    this.allocation.value ||= this.model.allocation ?? "";
    this.allocation.focus();
  }

  async try(deed, button) {
    setText(this.trouble, "");
    if (button) button.disabled = true;
    try {
      await deed();
    } catch (failure) {
      setText(this.trouble, failure.message); // here, where it was asked for
    } finally {
      if (button) button.disabled = false;
    }
    news.refresh();
  }

  wish(deed, isOn) {
    return this.try(() => ask(isOn ? `un${deed}` : deed, { model: this.model.id }));
  }

  free() {
    return this.try(async () => {
      const done = await ask("unload", { model: this.model.id });
      for (const one of [...done.kept, ...done.held])
        answer("info", `${one.name ?? one.id} stays: ${one.reason}`);
    });
  }

  draw(model) {
    this.model = model;
    const isLoading = model.state === "loading";
    setText(this.name, this.title);
    setText(this.what, [size(model.bytes), places(model), usersOf(model),
                        model.allocation ? `placed by ${model.allocation}` : ""]
      .filter(Boolean).join(" · "));
    this.bar.hidden = !isLoading;
    this.bar.max = model.bytes || 1;
    this.bar.value = model.progress ?? 0;
    this.bar.setAttribute("aria-label", `loading ${this.title}`);
    setText(this.unload, isLoading ? "cancel" : "unload");
    for (const [button, word, isOn] of [[this.pin, "pin", model.pinned],
                                        [this.keep, "keep", model.keep],
                                        [this.unload, this.unload.textContent, null],
                                        [this.place, "place", null]]) {
      button.setAttribute("aria-label", `${word} ${this.title}`);
      if (isOn !== null) button.setAttribute("aria-pressed", String(isOn));
    }
    for (const one of [this.pin, this.keep, this.place]) one.hidden = isLoading;
  }
}

function places(model) {
  if (model.state === "loading")
    return `loading, ${Math.round(100 * (model.progress ?? 0) / (model.bytes || 1))} %`;
  const found = model.where.filter((one) => one.bytes > 0)
    .map((one) => `${where(one.device)} ${size(one.bytes)}`);
  return found.join(" + ") || model.state;
}

/** What happened, and why. */
export function eventText(event) {
  const what = [event.type, event.name ?? event.model];
  if (event.bytes) what.push(size(event.bytes));
  if (event.device) what.push(`on ${where(event.device)}`);
  return `${what.join(" ")}${event.why ? `: ${event.why}` : ""}`;
}

class EventRow {
  constructor() {
    this.root = make("div", { class: "event dim", role: "listitem" });
  }

  draw(event) {
    const time = new Date(event.time_ms).toLocaleTimeString([], { hour: "2-digit",
                                                                  minute: "2-digit" });
    setText(this.root, `${time}  ${eventText(event)}`);
  }
}

/** A file of ComfyUI's model folders into the daemon's memory. */
class LoadForm {
  constructor() {
    this.kind = make("select");
    this.file = make("select");
    this.allocation = make("input", { type: "text", placeholder: "ram", list: DEVICES_LIST,
                                      spellcheck: "false" });
    this.button = make("button", { type: "submit" }, "load");
    this.trouble = make("div", { class: "trouble", role: "alert" });
    this.form = make("form", {}, make("label", {}, "Folder", this.kind),
                     make("label", {}, "File", this.file),
                     make("label", {}, "Allocation", this.allocation), this.button);
    this.root = make("div", {}, make("h3", {}, "Load"), this.form, this.trouble);
    this.kind.addEventListener("change", () => this.list());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    this.listKinds();
  }

  async ask(path) {
    const found = await api.fetchApi(path);
    return found.ok ? found.json() : [];
  }

  async listKinds() {
    const kinds = await this.ask("/models");
    const order = (kind) => (KINDS_FIRST.includes(kind) ? KINDS_FIRST.indexOf(kind) : 99);
    kinds.sort((one, other) => order(one) - order(other) || one.localeCompare(other));
    this.kind.replaceChildren(...kinds.map((kind) => make("option", { value: kind }, kind)));
    await this.list();
  }

  async list() {
    const found = await this.ask(`/models/${encodeURIComponent(this.kind.value)}`);
    this.file.replaceChildren(...found.map((name) => make("option", { value: name }, name)));
    this.button.disabled = found.length === 0;
  }

  async load() {
    setText(this.trouble, "");
    const name = this.file.value;
    try {
      const { model } = await ask("load", { file: `${this.kind.value}/${name}`,
                                            allocation: this.allocation.value });
      answer("success", `${model.name ?? name}: ${places(model)}`);
    } catch (failure) {
      setText(this.trouble, `${name}: ${failure.message}`);
    }
    news.refresh();
  }
}

/** What a ComfyUI that is gone has left in memory; `free` goes with it. */
export function warmText(models) {
  const byDevice = new Map();
  for (const place of models.flatMap((one) => one.where))
    byDevice.set(place.device, (byDevice.get(place.device) ?? 0) + place.bytes);
  const product = (name) => news.found?.devices?.find((one) => one.name === name)?.product;
  const parts = [...byDevice].filter(([, nbytes]) => nbytes > 0).map(([device, nbytes]) =>
    `${size(nbytes)} ${device === "cpu" ? "in RAM" : `on ${product(device) ?? device}`}`);
  return `${models.length} ${models.length === 1 ? "model" : "models"} still warm from a ComfyUI `
    + `that crashed or was stopped: ${parts.join(", ")}`;
}

export async function freeAll(models) {
  let freed = 0;
  for (const model of models) {
    try {
      const done = await ask("unload", { model: model.id });
      freed += done.unloaded.reduce((sum, one) => sum + one.bytes, 0);
    } catch (failure) {
      answer("error", failure.message);
    }
  }
  answer("info", `Freed ${size(freed)}`);
  news.refresh();
}

class Panel {
  constructor(element) {
    this.absent = make("div", { role: "status" });
    this.version = make("div", { class: "dim" });
    this.mismatch = make("div", { class: "trouble" });
    this.devices = make("div");
    this.title = make("h3");
    this.models = make("div", { role: "list", "aria-label": "models" });
    this.eventsTitle = make("h3", {}, "Last events");
    this.events = make("div", { role: "list", "aria-label": "last events" });
    this.names = make("datalist", { id: DEVICES_LIST });
    this.rows = [new Rows(this.devices, (one) => one.name, DeviceRow),
                 new Rows(this.models, (one) => one.id, ModelRow),
                 new Rows(this.events, (one) => `${one.time_ms} ${one.type} ${one.model} `
                                                + `${one.device} ${one.bytes}`, EventRow)];
    this.load = new LoadForm();
    this.doctor = new Doctor();
    this.body = make("div", {}, this.version, this.mismatch, this.devices, this.title, this.models,
                     this.load.root,
                     this.eventsTitle, this.events, this.names);
    this.root = make("div", { class: "distorch-panel", role: "region",
                              "aria-label": "What distorchd holds" }, this.absent, this.body,
                     this.doctor.root);
    element.append(this.root);
    this.take = () => this.draw(news.found);
    news.addEventListener("change", this.take);
    news.follow();
    news.refresh();
    this.timer = setInterval(() => {
      if (!this.root.isConnected) this.close();
      else if (!document.hidden) news.refresh();
    }, REFRESH_MS);
    if (news.found) this.take();
  }

  close() {
    clearInterval(this.timer);
    news.removeEventListener("change", this.take);
    this.root.remove();
  }

  draw(found) {
    this.body.hidden = !found.available;
    this.absent.replaceChildren(...(found.available ? [] : [
      found.is_off ? "distorchd is switched off." : "distorchd is not there.",
      make("div", { class: "dim" }, found.reason ?? ""),
      make("div", { class: "dim" }, "ComfyUI loads by itself.")]));
    if (!found.available) return;
    setText(this.version, `distorchd ${found.version}`);
    setText(this.mismatch, found.mismatch
      ? `Two versions: ${found.mismatch}. Update with scripts/install --plugin` : "");
    setText(this.title, found.models.length > 0 ? "Models" : "No model is held.");
    const last = [...found.last].reverse();
    this.eventsTitle.hidden = last.length === 0;
    [found.devices, found.models, last].forEach((items, i) => this.rows[i].draw(items));
    const names = ["auto", ...found.devices.filter((one) => one.is_visible).map((one) => one.name)];
    if (names.join() !== this.shownNames)
      this.names.replaceChildren(...names.map((value) => make("option", { value })));
    this.shownNames = names.join();
  }
}

let panel = null;
let isToCheck = false; // once there is a panel

/** Into the tab's element; null: it is closed. */
export function renderPanel(element) {
  panel?.close();
  panel = element && new Panel(element);
  if (panel && isToCheck) void panel.doctor.check();
  isToCheck = false;
}

/** Have the tab say what distorchctl doctor does. */
export function checkInTab() {
  isToCheck = !panel?.root.isConnected;
  if (isToCheck) {
    openTab();
    return;
  }
  void panel.doctor.check();
}
