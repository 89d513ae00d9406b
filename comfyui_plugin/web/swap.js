// SPDX-License-Identifier: Apache-2.0
// ComfyUI's own loaders into ours and back, in place: a node keeps its id, links, widget values,
// position, title and colour. Leans on what both front ends have of LiteGraph.

//: of ComfyUI and ComfyUI-GGUF: ours
const PAIRS = {
  UNETLoader: "DistorchDiffusionModelLoader",
  CheckpointLoaderSimple: "DistorchCheckpointLoader",
  CLIPLoader: "DistorchCLIPLoader",
  DualCLIPLoader: "DistorchDualCLIPLoader",
  TripleCLIPLoader: "DistorchTripleCLIPLoader",
  QuadrupleCLIPLoader: "DistorchQuadrupleCLIPLoader",
  VAELoader: "DistorchVAELoader",
  CLIPVisionLoader: "DistorchCLIPVisionLoader",
  ControlNetLoader: "DistorchControlNetLoader",
  DiffControlNetLoader: "DistorchDiffControlNetLoader",
  UnetLoaderGGUF: "DistorchGGUFDiffusionModelLoader",
  CLIPLoaderGGUF: "DistorchGGUFCLIPLoader",
  DualCLIPLoaderGGUF: "DistorchGGUFDualCLIPLoader",
};
const BACK = Object.fromEntries(Object.entries(PAIRS).map(([stock, ours]) => [ours, stock]));

// Of ComfyUI-MultiGPU, which are ours where that pack is not: most are named by what they stand
// before.
const OLD = /^(.+?)(?:DisTorch2?)?MultiGPU$/;
const OLD_OTHERS = {
  UNetLoaderLP: "UNETLoader",
  CheckpointLoaderAdvancedMultiGPU: "CheckpointLoaderSimple",
  CheckpointLoaderAdvancedDisTorch2MultiGPU: "CheckpointLoaderSimple",
};
const OLD_SELECTOR = "DeviceSelectorMultiGPU";
const OLD_DEVICE = "MULTIGPUDEVICE"; // the type of links that only those have

// They stand in the way of nothing: what comes into them goes on without them.
const MANAGERS = ["DistorchPin", "DistorchUnload", "DistorchMakeRoom", "DistorchStatus"];

export const isOurs = (type) => globalThis.LiteGraph?.registered_node_types?.[type]?.nodeData
  ?.category?.startsWith("distorch") ?? false;

export const isTakenOut = (type) =>
  MANAGERS.includes(type) || (type === OLD_SELECTOR && isOurs(type));

function stockOf(type) {
  if (type in BACK) return BACK[type];
  if (type === OLD_SELECTOR || !isOurs(type)) return undefined;
  return OLD_OTHERS[type] ?? OLD.exec(type)?.[1];
}

export const TO_OURS = new Map(Object.entries(PAIRS));
export const TO_STOCK = { has: (type) => stockOf(type) !== undefined, get: stockOf };

// What tells of the pack that a node is of; the new one has its own.
const OF_THE_PACK = ["cnr_id", "aux_id", "ver", "Node name for S&R"];

/** The graph of the page and those inside of it. */
export function graphsOf(app) {
  const root = app.rootGraph ?? app.graph?.rootGraph ?? app.graph;
  return root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
}

export const nodesOf = (graph) => graph.nodes ?? graph._nodes ?? [];

function takeProperties(from, into) {
  const properties = { ...from.properties };
  for (const name of OF_THE_PACK) {
    delete properties[name];
    if (name in (into.properties ?? {})) properties[name] = into.properties[name];
  }
  into.properties = properties;
}

function takeLooks(from, into) {
  const extra = into.computeSize()[1] - from.computeSize()[1]; // ours have more widgets
  into.pos = [from.pos[0], from.pos[1]];
  into.size = [from.size[0], Math.max(from.size[1] + extra, into.computeSize()[1])];
  if (from.title !== from.constructor.title) into.title = from.title;
  for (const name of ["color", "bgcolor", "boxcolor", "shape", "mode", "order"])
    if (from[name] !== undefined) into[name] = from[name];
  into.flags = { ...from.flags };
}

/** A card, which the old loaders of text encoders have a choice of and ComfyUI's own have not. */
const isElsewhere = (widget, value) => widget.name === "device"
  && Array.isArray(widget.options?.values) && !widget.options.values.includes(value);

function takeValues(from, into) {
  for (const widget of into.widgets ?? []) {
    const old = from.widgets?.find((one) => one.name === widget.name);
    if (!old) continue;
    widget.value = isElsewhere(widget, old.value) ? widget.options.values[0] : old.value;
  }
}

function linkOf(graph, id) {
  return graph.links?.get?.(id) ?? graph.links?.[id];
}

function takeLinks(graph, from, into) {
  for (const input of from.inputs ?? []) {
    const slot = (into.inputs ?? []).findIndex((one) => one.name === input.name);
    const link = input.link == null || slot < 0 ? null : linkOf(graph, input.link);
    if (!link) continue;
    link.target_slot = slot;
    into.inputs[slot].link = input.link;
    input.link = null;
  }
  (from.outputs ?? []).forEach((output, slot) => {
    if (!into.outputs?.[slot] || !output.links?.length) return;
    into.outputs[slot].links = [...output.links];
    output.links = [];
  });
}

/** What is connected to an input that only ours have goes with it. */
function goes(graph, into, input) {
  return input.link != null && (linkOf(graph, input.link)?.type === OLD_DEVICE
    || !into.inputs?.some((one) => one.name === input.name));
}

/** All links can be kept, but for what ours alone have. */
function fits(graph, from, into) {
  return (isOurs(from.type) || !(from.inputs ?? []).some((input) => goes(graph, into, input)))
    && (from.outputs ?? []).every((output, slot) => !output.links?.length || into.outputs?.[slot]
      || output.type === OLD_DEVICE);
}

function dropOursAlone(graph, from, into) {
  for (const [slot, input] of [...(from.inputs ?? [])].entries())
    if (goes(graph, into, input)) from.disconnectInput(slot);
  for (const [slot, output] of [...(from.outputs ?? [])].entries())
    if (output.type === OLD_DEVICE) from.disconnectOutput(slot);
}

/** The node that now stands where `node` stood, or null where there is none of that type. */
function swapOne(app, node, type) {
  const graph = node.graph;
  const at = graph?._nodes?.indexOf(node) ?? -1;
  const made = at >= 0 && type in LiteGraph.registered_node_types ? LiteGraph.createNode(type) : null;
  if (!made || !fits(graph, node, made)) return null;
  const isSelected = Boolean(app.canvas?.selected_nodes?.[node.id]);
  if (isSelected) app.canvas.deselect?.(node);
  takeProperties(node, made);
  takeLooks(node, made);
  takeValues(node, made);
  dropOursAlone(graph, node, made);
  node.onRemoved?.();
  graph.onNodeRemoved?.(node);
  made.id = node.id;
  made.graph = graph;
  graph._nodes[at] = made;
  graph._nodes_by_id[made.id] = made;
  for (const widget of made.widgets ?? []) widget.setNodeId?.(made.id);
  takeValues(node, made); // where a front end keeps values by the node's id
  takeLinks(graph, node, made);
  node.graph = null;
  made.onAdded?.(graph);
  graph.onNodeAdded?.(made);
  if (isSelected) app.canvas.select?.(made);
  return made;
}

/** Connects an input to where a link comes from: a node, or an input of the subgraph. */
function connectorOf(graph, link) {
  const node = graph.getNodeById(link.origin_id);
  if (node) return (target, slot) => node.connect(link.origin_slot, target, slot);
  const input = graph.inputNode?.slots?.[link.origin_slot];
  return input ? (target, slot) => input.connect(target.inputs[slot], target) : null;
}

/** Take a node out; what came into its `after` goes to where its first output went. */
function takeOut(node) {
  const graph = node.graph;
  if (!graph) return;
  const into = node.inputs?.find((one) => one.name === "after")?.link;
  const from = into == null ? null : linkOf(graph, into);
  const connect = from && connectorOf(graph, from);
  for (const id of connect ? [...(node.outputs?.[0]?.links ?? [])] : []) {
    const link = linkOf(graph, id);
    const target = link && graph.getNodeById(link.target_id);
    const source = graph.getNodeById(from.origin_id);
    if (target) connect(target, link.target_slot);
    else if (link && source)
      graph.outputNode?.slots?.[link.target_slot]?.connect(source.outputs[from.origin_slot], source);
  }
  graph.remove(node);
}

/** Swap what of `nodes` has a counterpart in `types`, and on the way back take out what is in no
 * one's place; how many were swapped, could not be, and were taken out. */
export function swap(app, nodes, types) {
  const wanted = nodes.filter((node) => types.has(node.type));
  const out = types === TO_STOCK ? nodes.filter((node) => isTakenOut(node.type)) : [];
  if (wanted.length + out.length === 0) return { n: 0, nLeft: 0, nOut: 0 };
  const canvas = app.canvas;
  canvas?.emitBeforeChange?.();
  canvas?.graph?.beforeChange?.();
  let n = 0;
  try {
    for (const node of wanted) if (swapOne(app, node, types.get(node.type))) n += 1;
    for (const node of out) takeOut(node);
  } finally {
    for (const graph of graphsOf(app)) {
      graph.updateExecutionOrder?.();
      graph.setDirtyCanvas?.(true, true);
    }
    canvas?.graph?.afterChange?.();
    canvas?.emitAfterChange?.(); // one step of undo
  }
  return { n, nLeft: wanted.length - n, nOut: out.length };
}
