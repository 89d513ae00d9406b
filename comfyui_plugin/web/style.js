// SPDX-License-Identifier: Apache-2.0
// Once for the page, in the colours of its theme.

const STYLE = `
.distorch-panel { padding: 0.75rem; color: var(--fg-color); font-size: 0.85rem; overflow: auto; height: 100%; box-sizing: border-box; container-type: inline-size; }
.distorch-panel h3 { font-size: 0.85rem; font-weight: bold; margin: 1rem 0 0.25rem; }
.distorch-panel .dim { color: var(--descrip-text); overflow-wrap: anywhere; }
.distorch-panel .device { margin-top: 0.5rem; display: flex; flex-wrap: wrap; column-gap: 0.5rem; justify-content: space-between; }
.distorch-panel progress { display: block; width: 100%; height: 0.4rem; margin-top: 0.25rem; appearance: none; border: 0; border-radius: 0.2rem; overflow: hidden; background: var(--border-color); }
.distorch-panel [hidden] { display: none !important; }
.distorch-panel progress::-webkit-progress-bar { background: var(--border-color); }
.distorch-panel progress::-webkit-progress-value { background: var(--p-primary-color, #3b82f6); }
.distorch-panel progress::-moz-progress-bar { background: var(--p-primary-color, #3b82f6); }
.distorch-panel .model, .distorch-panel .event { border-top: 1px solid var(--border-color); padding: 0.5rem 0; }
.distorch-panel .event { padding: 0.25rem 0; }
.distorch-panel .name { overflow-wrap: anywhere; }
.distorch-panel .trouble { color: var(--error-text, #d33); overflow-wrap: anywhere; }
.distorch-panel .notice { border: 1px solid var(--border-color); border-radius: 4px; padding: 0.5rem; margin-bottom: 0.75rem; }
.distorch-panel form { display: flex; flex-wrap: wrap; gap: 0.25rem; margin-top: 0.25rem; align-items: center; }
.distorch-panel label { display: flex; flex-direction: column; flex: 1 1 9rem; min-width: 0; color: var(--descrip-text); }
.distorch-panel input, .distorch-panel select { width: 100%; box-sizing: border-box; padding: 0.2rem 0.4rem; border-radius: 4px; border: 1px solid var(--border-color); background: var(--comfy-input-bg); color: var(--input-text); font: inherit; }
.distorch-panel form button { align-self: end; }
.distorch-panel button, .distorch-button { margin: 0.25rem 0.25rem 0 0; padding: 0.15rem 0.5rem; cursor: pointer; border-radius: 4px; border: 1px solid var(--border-color); background: var(--comfy-input-bg); color: var(--input-text); font: inherit; }
.distorch-panel form button { margin: 0; }
.distorch-panel .doctor { border-top: 1px solid var(--border-color); margin-top: 0.75rem; padding: 0.5rem 0; }
.distorch-panel .doctor button { margin-right: 0; max-width: 100%; overflow-wrap: anywhere; }
.distorch-panel button:disabled { opacity: 0.5; cursor: default; }
.distorch-panel :is(button, input, select):focus-visible, .distorch-button:focus-visible { outline: 2px solid var(--p-primary-color, currentColor); outline-offset: 1px; }
.distorch-panel button[aria-pressed="true"] { border-color: var(--fg-color); font-weight: bold; }
.distorch-pill { max-width: var(--distorch-pill-width, none); overflow: hidden; text-overflow: ellipsis; white-space: pre; font-variant-numeric: tabular-nums; }
.distorch-absent { opacity: 0.6; }
.distorch-pressed { color: #d98b00 !important; }
.distorch-ill { color: #e5484d !important; }
`;

export function addStyle() {
  const style = document.createElement("style");
  style.textContent = STYLE;
  document.head.append(style);
}

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
