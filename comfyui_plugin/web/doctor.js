// SPDX-License-Identifier: Apache-2.0
// What `distorchctl doctor` finds, each with its fix. Asked for by the button in the tab, or the command.
import { ask } from "./news.js";
import { make } from "./style.js";

export class Doctor {
  constructor() {
    this.button = make("button", { type: "button", title: "What distorchctl doctor says" },
                       "check distorchd");
    this.button.addEventListener("click", () => void this.check());
    this.status = make("div", { class: "dim", role: "status" });
    this.list = make("div", { role: "list", "aria-label": "what distorchctl doctor says" });
    this.root = make("div", { class: "doctor" }, this.button, this.status, this.list);
  }

  async check() {
    this.button.disabled = true;
    this.list.replaceChildren();
    this.status.textContent = "It is looked at …";
    try {
      const { checks } = await ask("doctor", {});
      const n = checks.filter((one) => !one.ok).length;
      this.status.textContent = n === 0 ? "All good"
        : `${n} ${n === 1 ? "finding" : "findings"}`;
      this.list.replaceChildren(...checks.map(line));
    } catch (failure) {
      this.status.textContent = failure.message;
    }
    this.button.disabled = false;
    this.root.scrollIntoView({ block: "nearest" });
  }
}

function line({ ok, text, fix }) {
  const made = make("div", { role: "listitem", class: ok ? "dim" : "name" },
                    `${ok ? "✔" : "✖"} ${text}`);
  if (!ok && fix) made.append(make("div", { class: "dim" }, `fix: ${fix}`));
  return made;
}
