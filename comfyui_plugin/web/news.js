// SPDX-License-Identifier: Apache-2.0
// What the daemon holds, as ComfyUI's server told last. It is asked for once; then it comes by itself.
import { api } from "../../scripts/api.js";

const LATE_MS = 10000; // for the page's own connection to have its number
const MAX_QUERY = 2048; // characters: servers take some 8,000, and ours 256 files, which it never has

export async function ask(path, body) {
  const answer = await api.fetchApi(`/distorch/${path}`, body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `${answer.status} ${answer.statusText}`);
  return found;
}

/** {file: {bytes, model}} of those of "kind/name" that ComfyUI has in its folders. */
export async function askFiles(files) {
  const queries = [];
  for (const file of files) {
    const word = `file=${encodeURIComponent(file)}`, last = queries.length - 1;
    if (last >= 0 && queries[last].length + word.length < MAX_QUERY) queries[last] += `&${word}`;
    else queries.push(word);
  }
  const found = {};
  for (const query of queries) Object.assign(found, (await ask(`models?${query}`)).files);
  return found;
}

export function size(nbytes) {
  let unit = "B";
  for (const next of ["K", "M", "G", "T"]) {
    if (nbytes < 1024) break;
    nbytes /= 1024;
    unit = next;
  }
  return unit === "B" ? `${nbytes}B` : `${nbytes.toFixed(1)}${unit}`;
}

/** The name that people have for a device. */
export const where = (device) => (device === "cpu" ? "ram" : device);

async function clientId() {
  const end = Date.now() + LATE_MS;
  while (!api.clientId && Date.now() < end) await new Promise((done) => setTimeout(done, 100));
  return api.clientId ?? "";
}

class News extends EventTarget {
  found = null; // nothing is known yet
  #isFollowed = false;

  /** Be told from now on; more than once is fine. */
  follow() {
    if (this.#isFollowed) return;
    this.#isFollowed = true;
    api.addEventListener("distorch.status", (event) => this.#take(event.detail));
    api.addEventListener("reconnected", () => this.refresh()); // perhaps to another server
    this.refresh();
  }

  async refresh() {
    let found;
    try {
      found = await ask(`status?client=${encodeURIComponent(await clientId())}`);
    } catch (failure) {
      found = { available: false, reason: failure.message };
    }
    const left = found.left ?? [];
    delete found.left;
    this.#take(found);
    if (left.length > 0) this.dispatchEvent(new CustomEvent("left", { detail: left }));
  }

  #take(found) {
    this.found = found;
    this.dispatchEvent(new CustomEvent("change"));
  }
}

export const news = new News();
