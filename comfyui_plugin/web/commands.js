// SPDX-License-Identifier: Apache-2.0
// In the palette and the menu, besides the way in and out: what is done with all models at once.
import { app } from "../../scripts/app.js";
import { filesOf } from "./badges.js";
import { ask, askFiles, news, size } from "./news.js";
import { checkInTab } from "./panel.js";
import { graphsOf, nodesOf } from "./swap.js";
import { toast } from "./toast.js";

const answer = (severity, lines) =>
  toast(severity, lines.filter(Boolean).join("; "), { isAnswer: true });

const models = (n) => `${n} ${n === 1 ? "model" : "models"}`;

async function unloadIdle() {
  const { unloaded, held } = await ask("unload", { idle: true });
  const freed = unloaded.reduce((sum, one) => sum + one.bytes, 0);
  answer("info", [unloaded.length > 0 ? `Unloaded ${models(unloaded.length)}, ${size(freed)}`
                                      : "No model is idle",
                  ...held.map((one) => `${one.name ?? one.id} stays: ${one.reason}`)]);
}

async function pinWorkflow() {
  const nodes = graphsOf(app).flatMap((graph) => [...nodesOf(graph)]);
  const files = [...new Set(nodes.flatMap(filesOf))];
  if (files.length === 0) {
    answer("info", ["No loader with a model file is in this workflow"]);
    return;
  }
  const found = Object.entries(await askFiles(files));
  const ids = new Map(found.map(([file, { model }]) => [file, model]));
  const { models: held } = await ask("models");
  const inMemory = new Set(held.filter((one) => one.where.some((place) => place.bytes > 0))
    .map((one) => one.id));
  const wanted = files.filter((file) => inMemory.has(ids.get(file)));
  for (const id of new Set(wanted.map((file) => ids.get(file)))) await ask("pin", { model: id });
  const missing = files.filter((file) => !wanted.includes(file))
    .map((file) => file.slice(file.indexOf("/") + 1));
  answer(missing.length > 0 ? "warn" : "success",
         [`Pinned ${models(wanted.length)}`,
          missing.length > 0 && `not in memory: ${missing.join(", ")}`]);
}

const told = (deed) => async () => {
  try {
    await deed();
  } catch (failure) {
    answer("error", [failure.message]);
  }
  if (news.found !== null) news.refresh();
};

export const commands = [
  { id: "distorch.unloadIdle", label: "Unload all idle models", icon: "pi pi-eject",
    function: told(unloadIdle) },
  { id: "distorch.pin", label: "Pin this workflow's models", icon: "pi pi-lock",
    function: told(pinWorkflow) },
  { id: "distorch.doctor", label: "Check distorchd", icon: "pi pi-heart", function: checkInTab },
];
