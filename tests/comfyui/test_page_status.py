# SPDX-License-Identifier: Apache-2.0
"""What the page of a real ComfyUI shows of the daemon: memory in its top bar, a sidebar tab, badges,
messages; and that it asks for none of it while nothing changes."""
import signal
import time

import models as models_of
import pytest
from conftest import END_TO_END, Server, daemon_with
from graphs import KINDS, node, sample
from page import (BADGE, LOADER, PRIORITIES, cpu_used, keep_picture, needs_browser,  # noqa: F401
                  open_page, queue, run, server, server_alone, show, threads)
from test_workflows import models

pytestmark = needs_browser
wait_until = END_TO_END.wait_until
daemon = daemon_with("sim.count=2", "sim.memory=64M")
ENTER = "\ue007"
NAME = KINDS["sd3_2"][0]

#: [what it says, in full]; null where nothing is shown. In the top bar, or on the tab's icon.
PILL = """
const button = document.querySelector(".distorch-pill");
if (button) return [button.innerText.trim(), button.getAttribute("aria-label"), button.className];
const icon = document.querySelector(".distorch-tab-button");
const badge = icon?.querySelector(".p-badge")?.innerText;
return badge ? [badge, icon.getAttribute("aria-label") ?? "", ""] : null;"""

PANEL = "return document.querySelector('.distorch-panel')?.innerText ?? null"
TOASTS = ("return [...document.querySelectorAll('.p-toast-message')].map((one) => one.innerText)"
          ".filter((one) => one.includes('distorchd')).join('\\n') || null")


def has_top_bar(page):
    return page.do("return document.querySelector('.distorch-pill') !== null")


def open_tab(page):
    if page.do(PANEL) is None:
        page.do("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
    return page.wait(PANEL)


def model_row(page, name, script):
    """What a script returns of the tab's row of a model, once it is there."""
    return page.wait("""
const row = [...document.querySelectorAll('.distorch-panel .model')]
  .find((one) => one.innerText.includes(args[0]));
if (!row) return null;""" + script, name)


def free(server, daemon, name=NAME):
    """The model is the daemon's no more."""
    def is_gone():
        with daemon.raw() as raw:
            raw.call("unload", {"select": {"all": True}})
        return name not in models(daemon)

    server.free(is_gone)


def hold(server, daemon, kind="sd3_2"):
    """The model is in the daemon's memory and in use, whatever ComfyUI has cached, and though the
    daemon may not have been there a moment ago."""
    def is_held():
        server.run(sample(kind, priority=next(PRIORITIES)))
        return models(daemon).get(KINDS[kind][0], {"leases": 0})["leases"] > 0

    wait_until(is_held, 30, "the model to be held")


def n_requests(daemon):
    """Of all clients, as the daemon counts them."""
    with daemon.raw() as raw:
        text = raw.call("metrics")["text"]
    return {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines()
            if line.startswith("distorchd_requests_total") and
            not any(word in line for word in ("metrics", "hello", "ping"))}


# ---- memory in the top bar ----

def test_memory_is_shown_and_a_click_opens_the_tab(server, daemon, open_page):
    free(server, daemon)
    page = open_page(server)
    page.wait(PILL)
    if has_top_bar(page):
        text, full, _ = page.do(PILL)
        assert text.split() == ["RAM", "0/1", "VRAM", "0/0.1"] and "GiB" in full
    else:  # the front end that has no place for extensions there
        page.wait(PILL)
        assert page.do(PILL)[0] == "0%"
    show(page, sample("sd3_2"))
    queue(page)
    with daemon.raw() as raw:
        raw.call("place", {"model": models(daemon)[NAME]["id"], "allocation": "sim:0"})
    some = r"VRAM\s+0\.0\/" if has_top_bar(page) else "^[1-9]"  # neither matches what was before
    page.wait("const found = (() => {" + PILL + "})();"
              f"return /{some}/.test(found?.[0])")
    assert page.do(PANEL) is None
    page.do("document.querySelector('.distorch-pill, .distorch-tab-button').click()")
    assert NAME in page.wait(PANEL)
    keep_picture(page, "tab")


def test_a_daemon_that_goes_and_comes_is_told_of(server, daemon, open_page):
    page = open_page(server)
    page.wait(PILL)
    daemon.process.kill()
    daemon.process.wait()
    try:
        page.wait("const found = (() => {" + PILL + "})();"
                  "return found?.[0] === 'no distorchd' || found?.[0] === 'off'", seconds=30)
        assert "is not there" in open_tab(page)
    finally:
        daemon.start()
    page.wait("return document.querySelector('.distorch-panel progress')?.checkVisibility()")
    page.wait("const found = (() => {" + PILL + "})(); return /^(RAM|\\d+%)/.test(found?.[0])")


def clients(daemon):
    with daemon.raw() as raw:
        return [one for one in raw.call("clients")["clients"] if one["connected"]]


def test_at_rest_nothing_is_asked_and_next_to_nothing_computed(base, daemon, open_page):
    server = Server(base, daemon.socket).start()  # one whose threads are not many
    try:
        server.run(sample("sd3_2"))
        server.get("/distorch/status")
        server.get("/distorch/models")
        time.sleep(1)
        before = threads(server)
        page = open_page(server)
        page.wait(PILL)
        time.sleep(3)  # what the start of a page brings is over
        news = threads(server) - before
        count = n_requests(daemon)
        asked = "return performance.getEntriesByType('resource').filter((one) => " \
                "one.name.includes('/distorch/')).length"
        n_asked = page.do(asked)
        used = cpu_used(server, news, 10)
        assert n_requests(daemon) == count and page.do(asked) == n_asked
        assert used < 10 * 0.01, used  # 1 % of a core; this machine is shared
        labels = {one.get("label") for one in clients(daemon)}
        assert "ComfyUI page" in labels
        page.close()
        wait_until(lambda: "ComfyUI page" not in {one.get("label") for one in clients(daemon)}, 20,
                   "the connection to end with the page")
        wait_until(lambda: news - threads(server), 5, "its thread to end")
    finally:
        server.stop()


# ---- the sidebar tab ----

def test_the_sidebar_lists_and_pins_by_the_keyboard(server, daemon, open_page):
    hold(server, daemon, "sd3_1")
    name = KINDS["sd3_1"][0]
    page = open_page(server)
    page.do("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
    model_row(page, name, "return true")
    text = page.wait(PANEL)
    assert name in text and "used by this ComfyUI" in text and "sim:1 · Simulated device" in text
    button = f".distorch-panel [aria-label='pin {name}']"
    for is_pinned in (True, False):
        page.press(page.find(button), ENTER)
        wait_until(lambda now=is_pinned: models(daemon)[name]["pinned"] is now, 20, "the pin")
        page.wait("const one = document.querySelector(args[0]);"
                  "return one === document.activeElement"
                  " && one.getAttribute('aria-pressed') === args[1]", button, str(is_pinned).lower())
    daemon.process.kill()
    daemon.process.wait()
    try:
        page.wait("return document.querySelector('.distorch-panel')?.innerText.includes('not there')")
    finally:
        daemon.start()
    page.wait("return document.querySelector('.distorch-panel .name') !== null"
              " || document.querySelector('.distorch-panel progress')?.checkVisibility()")
    page.do("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
    page.wait("return document.querySelector('.distorch-panel') === null")


def test_a_model_is_placed_and_the_planner_refuses(server, daemon, open_page):
    hold(server, daemon)
    page = open_page(server)
    open_tab(page)
    assert model_row(page, NAME, "return [!row.querySelector('form').checkVisibility()]") == [True]
    model_row(page, NAME, "row.querySelector(\"[aria-label^='place']\").click(); return true")
    field = page.find(".distorch-panel .model form:not([hidden]) input")
    page.do("document.activeElement.value = ''")
    page.press(field, "gpu9,*" + ENTER)
    refusal = model_row(page, NAME, "return row.querySelector('.trouble').innerText")
    assert 'there is no device "gpu9"' in refusal and "sim:0" in refusal
    keep_picture(page, "refusal")
    page.do("document.activeElement.value = ''")
    page.press(field, "sim:0,1mb;cpu,*" + ENTER)
    model_row(page, NAME, "return /sim:0 .* placed by sim:0,1mb;cpu/.test(row.innerText.replaceAll('\\n', ' '))")
    where = {place["device"] for place in models(daemon)[NAME]["where"] if place["bytes"] > 0}
    assert "sim:0" in where
    assert "placed" in page.wait(PANEL).split("Last events")[1]
    free(server, daemon)


def load_by_tab(page, kind, file):
    page.wait("return document.querySelectorAll('.distorch-panel select')[1]?.options.length > 0")
    page.do("""
const [kind, file] = document.querySelectorAll('.distorch-panel select');
kind.value = args[0];
kind.dispatchEvent(new Event('change'));
const end = Date.now() + 5000;
while (![...file.options].some((one) => one.value === args[1]) && Date.now() < end)
  await new Promise((done) => setTimeout(done, 50));
file.value = args[1];
file.form.requestSubmit();""", kind, file)


def test_a_file_is_loaded_and_a_load_is_cancelled(server, daemon, open_page):
    END_TO_END.need_hooks()
    free(server, daemon)
    page = open_page(server)
    open_tab(page)
    load_by_tab(page, "diffusion_models", NAME)
    model_row(page, NAME, "return row.innerText.includes('ram')")
    assert models(daemon)[NAME]["leases"] == 0
    big = KINDS["sd15"][0]
    daemon.tell("fault pread:1:delay=300:ever")
    try:
        load_by_tab(page, "checkpoints", big)
        model_row(page, big, "return row.querySelector('progress').value > 0")
        keep_picture(page, "loading")
        model_row(page, big, "row.querySelector(\"[aria-label^='cancel']\").click(); return true")
        page.wait("return [...document.querySelectorAll('.distorch-panel .trouble')]"
                  ".some((one) => one.innerText.includes('cancelled'))")
    finally:
        daemon.tell("clear x")
    wait_until(lambda: models(daemon).get(big, {}).get("state") != "loading", 30, "it to end")
    assert models(daemon).get(big, {"state": "none"})["state"] != "resident"
    free(server, daemon)


def test_nothing_is_cut_off_in_a_narrow_window_and_both_themes_are_legible(server, daemon,
                                                                          open_page):
    hold(server, daemon)
    page = open_page(server)
    open_tab(page)
    model_row(page, NAME, "row.querySelector(\"[aria-label^='place']\").click(); return true")
    page.do("document.querySelector('.distorch-panel .doctor button').click()")
    page.wait("return /daemon answers/.test(document.querySelector('.doctor').innerText)")
    for theme in ("light", "dark"):
        page.do("await app.extensionManager.setting.set('Comfy.ColorPalette', args[0])", theme)
        for width, height in ((700, 600), (1400, 1000)):
            page.resize(width, height)
            time.sleep(0.5)
            wide = page.do("const one = document.querySelector('.distorch-panel');"
                           "return [one.scrollWidth, one.clientWidth]")
            assert wide[0] <= wide[1], (theme, width, wide)
            keep_picture(page, f"{theme}-{width}")
        worst = page.do("""
const light = (colour) => {
  const parts = colour.match(/[\\d.]+/g).map(Number);
  if (parts.length > 3 && parts[3] < 0.5) return null;
  const [r, g, b] = parts.slice(0, 3).map((one) => {
    const value = colour.startsWith("rgb") ? one / 255 : one;
    return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const found = light(getComputedStyle(one).backgroundColor);
    if (found !== null) return found;
  }
  return 1;
};
const seen = [...document.querySelectorAll(".distorch-panel :is(.name, .dim, button, h3)")]
  .filter((one) => one.checkVisibility() && one.innerText.trim() && !one.disabled);
return Math.min(...seen.map((one) => {
  const [a, b] = [light(getComputedStyle(one).color), behind(one)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}));""")
        assert worst >= 3, f"{theme}: a contrast of {worst}"


# ---- badges ----

@pytest.mark.parametrize("nodes", ["canvas", "elements"])
def test_badges_follow_the_model(server, daemon, open_page, nodes):
    page = open_page(server)
    if nodes == "elements":
        if not page.do("return app.extensionManager.setting.get('Comfy.VueNodes.Enabled') !== undefined"
                       " && Boolean(app.graph.constructor.prototype.trigger)") or not has_top_bar(page):
            pytest.skip("this front end draws all nodes on its canvas")
        page.do("await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    free(server, daemon)
    show(page, sample("sd3_2"))

    def badge(wanted):
        page.wait("const text = (() => {" + BADGE + "})(); return new RegExp(args[1]).test(text)",
                  LOADER, wanted)
        if nodes == "elements":
            page.wait("return [...document.querySelectorAll('[data-node-id]')]"
                      ".some((one) => new RegExp(args[0]).test(one.innerText.replaceAll('\\n', '|')))",
                      wanted.replace("^", "\\|").replace("$", "(\\||$)"))

    try:
        badge("^cold")
        queue(page)
        badge("^hot · ram")  # and what that has saved, where it was loaded ahead
        identity = models(daemon)[NAME]["id"]
        with daemon.raw() as raw:
            raw.call("place", {"model": identity, "allocation": "sim:1"})
        badge("^hot · .*sim:1")
        keep_picture(page, f"badges-{nodes}")
        page.do("const one = app.graph.nodes.find((one) => one.type === args[0]);"
                "const widget = one.widgets[0]; widget.value = args[1];"
                "one.onWidgetChanged?.(widget.name, args[1], '', widget)", LOADER, KINDS["sd3_1"][0])
        badge("^cold · \\d+\\.\\d s$")  # a load was measured
        free(server, daemon)
    finally:
        if nodes == "elements":
            page.do("await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_after_a_run_the_badge_says_what_memory_has_saved(server, daemon, open_page):
    END_TO_END.need_hooks()
    free(server, daemon)
    page = open_page(server)
    show(page, sample("sd3_2"))
    daemon.tell("fault pread:1:delay=400:ever")
    try:
        queue(page)
    finally:
        daemon.tell("clear x")
    page.wait("return /^hot · ram/.test((() => {" + BADGE + "})())", LOADER)
    time.sleep(1)
    assert page.do(BADGE, LOADER) == "hot · ram", "it had to be waited for"
    queue(page)
    text = page.wait("const text = (() => {" + BADGE + "})(); return /saved/.test(text) && text",
                     LOADER)
    speed = server.get("/distorch/status")["speed"]
    wanted = models(daemon)[NAME]["bytes"] / speed
    saved = float(text.removeprefix("hot · ram · saved ").removesuffix(" s"))
    assert 0.1 <= saved <= wanted + 0.06 and saved > wanted - 0.5, (saved, wanted)
    keep_picture(page, "saved")
    free(server, daemon)
    page.wait("return /^cold · /.test((() => {" + BADGE + "})())", LOADER)


def test_a_load_is_told_of_in_the_bar(server, daemon, open_page, base):
    END_TO_END.need_hooks()
    free(server, daemon)
    page = open_page(server)
    page.wait(PILL)
    full = """
const tabs = app.extensionManager.sidebarTab.sidebarTabs;
return document.querySelector(".distorch-pill")?.getAttribute("aria-label")
  ?? tabs.find((one) => one.id === "distorch").tooltip;"""
    assert "loading" not in page.do(full)
    path = models_of.write(base / "models/diffusion_models/large.safetensors",
                           {"weight": models_of.numpy.zeros(48 << 20, "float32")})
    daemon.tell("fault pread:1:delay=300:ever")
    try:
        page.do("void fetch('/distorch/load', { method: 'POST', headers: "
                "{ 'Content-Type': 'application/json' }, body: JSON.stringify({ file: args[0] }) })",
                f"diffusion_models/{path.name}")
        page.wait("return new RegExp(`loading ${args[0]}: .*M of .*M, .* MB/s, [0-9]+ s left`)"
                  ".test((() => {" + full + "})())", path.name)
        if has_top_bar(page):
            page.wait("return /loading \\d+ % \\d+ s/.test("
                      "document.querySelector('.distorch-pill').innerText)")
        keep_picture(page, "bar-loading")
    finally:
        daemon.tell("clear x")
        path.unlink()
    page.wait("return !/loading/.test((() => {" + full + "})())")
    assert "of requests found their model in memory" in page.do(full)
    free(server, daemon)


def test_without_a_daemon_the_badge_and_the_bar_say_so(server_alone, open_page):
    page = open_page(server_alone)
    show(page, sample("sd3_1"))
    queue(page)
    assert page.wait(BADGE, LOADER).startswith("loaded by ComfyUI itself: ")
    text, full, _ = page.wait(PILL)
    assert text in ("no distorchd", "off") and (not has_top_bar(page) or "nobody.sock" in full)
    assert "nobody.sock" in open_tab(page)
    keep_picture(page, "absent")


def test_a_cold_load_moves_the_nodes_own_bar_and_is_cancelled(server, daemon, open_page):
    END_TO_END.need_hooks()
    free(server, daemon)
    page = open_page(server)
    show(page, sample("sd15"))
    daemon.tell("fault pread:1:delay=300:ever")
    try:
        page.do("""
const { api } = app;
window.seen = [];
api.addEventListener("progress", ({ detail }) => window.seen.push([detail.node, detail.value, detail.max]));
window.ended = null;
for (const name of ["execution_interrupted", "execution_success", "execution_error"])
  api.addEventListener(name, () => { window.ended = name; });
await app.queuePrompt(0, 1);""")
        page.wait("return new Set(window.seen.map((one) => one[1])).size > 2")
        page.wait("const text = (() => {" + BADGE + "})(); return /^loading · \\d+ %/.test(text)",
                  "DistorchCheckpointLoader")
        keep_picture(page, "progress")
        seen = page.do("return window.seen")
        loader = page.do("return String(app.graph.nodes.find((one) => one.type === args[0]).id)",
                         "DistorchCheckpointLoader")
        assert {one[0] for one in seen} == {loader} and seen[0][1] < seen[-1][1] < seen[-1][2]
        page.do("await app.extensionManager.command.execute('Comfy.Interrupt')")
        assert page.wait("return window.ended") == "execution_interrupted"
    finally:
        daemon.tell("clear x")
    wait_until(lambda: not any(one["state"] == "loading" for one in models(daemon).values()), 60,
               "the load to end")


# ---- messages ----

def test_what_a_crashed_comfyui_left_is_offered_to_be_freed(base, daemon, open_page, server):
    free(server, daemon)
    crashed = Server(base, daemon.socket).start()
    crashed.run(sample("sd3_2", keep_loaded=False))
    crashed.stop(signal.SIGKILL)
    wait_until(lambda: models(daemon)[NAME]["leases"] == 0, 20, "the lease of who was killed")
    follower = Server(base, daemon.socket).start()
    try:
        follower.post("/settings/distorch.toasts", False)
        page = open_page(follower)
        page.wait(PILL)
        time.sleep(2)
        assert page.do(TOASTS) is None
        follower.post("/settings/distorch.toasts", True)  # a page that showed nothing told nothing
        page.go(f"http://127.0.0.1:{follower.port}/")
        text = page.wait(TOASTS)
        assert "1 model still warm" in text and "in RAM" in text and "or was stopped" in text
        keep_picture(page, "crash")
        page.wait("return document.querySelector('.p-toast-message .distorch-button') !== null")
        page.press(page.find(".p-toast-message .distorch-button"), ENTER)
        wait_until(lambda: NAME not in models(daemon), 20, "it to be freed")
        page.go(f"http://127.0.0.1:{follower.port}/")
        page.wait(PILL)
        time.sleep(2)
        assert page.do(TOASTS) is None, "told of once"
    finally:
        follower.stop()


def test_what_ended_in_order_left_nothing_to_tell(base, daemon, open_page, server):
    free(server, daemon)
    other = Server(base, daemon.socket).start()
    other.run(sample("sd3_2"))
    other.stop(signal.SIGINT)
    page = open_page(server)
    page.wait(PILL)
    time.sleep(2)
    assert NAME in models(daemon) and page.do(TOASTS) is None
    free(server, daemon)


def test_what_comfyui_unloads_is_told_of(server, daemon, open_page):
    page = open_page(server)
    page.wait(PILL)
    hold(server, daemon)
    try:
        server.post("/settings/distorch.onUnload", "all")
        server.free(lambda: page.do(TOASTS))
        assert f"unloaded: {NAME}" in page.do(TOASTS)
    finally:
        server.post("/settings/distorch.onUnload", "ram")


def reserve_all(daemon):
    """Room that needs that of whatever is idle."""
    with daemon.raw() as raw:
        ram = raw.call("status")["devices"][0]
        raw.call("reserve", {"device": "cpu", "bytes": ram["budget"], "ttl_ms": 100})


def test_an_eviction_is_told_of_to_who_wants_that(server, daemon, open_page):
    free(server, daemon)
    page = open_page(server)
    page.wait(PILL)
    show(page, sample("sd3_2"))
    settle = "await app.extensionManager.setting.set('distorch.tellEvictions', args[0])"

    def evict():
        queue(page)
        server.free(lambda: models(daemon)[NAME]["leases"] == 0)
        reserve_all(daemon)
        wait_until(lambda: models(daemon)[NAME]["state"] != "resident", 20, "its eviction")

    evict()
    if has_top_bar(page):
        page.wait("return document.querySelector('.distorch-pressed') !== null")
    time.sleep(2)  # it knows by now
    assert "evicted" not in (page.do(TOASTS) or "")
    try:
        page.do(settle, True)
        evict()
        said = page.wait("const said = (() => {" + TOASTS + "})();"
                         "return said?.includes('evicted') ? said : null")
        assert said.count(f"evicted {NAME}") == 1 and "its room is reserved" in said, said
    finally:
        page.do(settle, False)


# ---- settings ----

def test_settings_switch_each_thing_off(server, server_alone, open_page):
    page = open_page(server_alone)
    page.wait(PILL)
    show(page, sample("sd3_1"))
    settle = "await app.extensionManager.setting.set(args[0], args[1])"
    try:
        for name in ("distorch.pill", "distorch.badges", "distorch.toasts"):
            page.do(settle, name, False)
        queue(page)
        time.sleep(1)
        assert page.do(PILL) is None and page.do(BADGE, LOADER) is None
        assert page.do(TOASTS) is None
        page.do(settle, "distorch.badges", True)
        assert page.wait(BADGE, LOADER).startswith("loaded by ComfyUI itself")
        page.do(settle, "distorch.pill", True)
        page.wait(PILL)
        assert page.do("return app.extensionManager.setting.get('distorch.onUnload')") == "ram"
        page.do(settle, "distorch.onUnload", "keep")
        wait_until(lambda: server_alone.get("/settings").get("distorch.onUnload") == "keep", 10,
                   "it to be saved")
        page.do(settle, "distorch.onUnload", "ram")
        page.do(settle, "distorch.toasts", True)
        if has_top_bar(page):
            width = "return document.querySelector('.distorch-pill').offsetWidth"
            page.do(settle, "distorch.pillWidth", 30)
            page.wait(f"{width} <= 30")
            page.do(settle, "distorch.pillWidth", 0)
            page.wait(f"{width} > 30")
        page.do("await app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
        page.wait("""
const entry = [...document.querySelectorAll('[role=dialog] *')]
  .find((one) => one.children.length === 0 && one.textContent.trim() === 'distorchd');
entry?.click();
return document.body.innerText.includes('When ComfyUI unloads its models');""")
        for one in ("Socket of the daemon", "What is logged", "Seconds between updates",
                    "Pin models once they are used", "Show a message when a model is evicted"):
            assert one in page.do("return document.body.innerText"), one
        keep_picture(page, "settings")
    finally:
        for name in ("distorch.pill", "distorch.badges", "distorch.toasts"):
            page.do(settle, name, True)


def test_the_page_is_told_as_often_as_its_user_wants(server, daemon, open_page):
    free(server, daemon)
    page = open_page(server)
    page.wait(PILL)
    settle = "await app.extensionManager.setting.set('distorch.refresh', args[0])"
    page.do("""
const { api } = await import("/scripts/api.js");
window.told = 0;
api.addEventListener("distorch.status", () => { window.told += 1; });""")

    def pin_often():
        """What is told of each, within three seconds."""
        before = page.do("return window.told")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for is_pinned in (True, False):
                with daemon.raw() as raw:
                    raw.call("set", {"model": NAME, "policy": {"pin": is_pinned}})
        return page.do("return window.told") - before

    server.run(sample("sd3_2"))
    try:
        page.do(settle, 0)
        time.sleep(2)  # what was under way
        assert pin_often() == 0
        page.do(settle, 10)
        time.sleep(2)
        assert pin_often() <= 1
        page.do(settle, 0.5)
        wait_until(lambda: 4 <= pin_often() <= 8, 40, "it to be told of twice a second")
    finally:
        page.do(settle, 1)
        free(server, daemon)
