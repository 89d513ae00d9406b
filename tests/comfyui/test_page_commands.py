# SPDX-License-Identifier: Apache-2.0
"""What the page of a real ComfyUI has in its palette, what distorchctl doctor says there, and the
switch that turns all of it off."""
import os
import shutil

from conftest import END_TO_END, ROOT, Server, daemon_with, make_base
from graphs import KINDS, node, sample
from page import (keep_picture, needs_browser, open_page, ours_of, queue, run,  # noqa: F401
                  server, server_alone, show)
from test_page_status import ENTER, NAME, PANEL, PILL, TOASTS, free, hold, open_tab
from test_routes import ask
from test_unload import idle
from test_workflows import models

pytestmark = needs_browser
wait_until = END_TO_END.wait_until
daemon = daemon_with()
DOCTOR = "return document.querySelector('.distorch-panel .doctor')?.innerText ?? null"
HARM = '<img src=x onerror="window.harmed=1">.safetensors'


def said(page, *words):
    """The messages, once all of these are among them."""
    page.wait("const text = (() => {" + TOASTS + "})();"
              "return text !== null && args[0].every((one) => text.includes(one))", list(words))


def test_idle_models_are_unloaded_by_one_command(server, daemon, open_page, base):
    free(server, daemon)
    hold(server, daemon)
    names = [idle(daemon, base, 1 << 20, name) for name in ("idle-1", "idle-2", "pinned")]
    with daemon.raw() as raw:
        raw.call("set", {"model": models(daemon)[names[2]]["id"], "policy": {"pin": True}})
    page = open_page(server)
    run(page, "distorch.unloadIdle")
    said(page, "Unloaded 2 models, 2.0M")
    wait_until(lambda: not set(names[:2]) & set(models(daemon)), 10, "them to go")
    assert models(daemon)[NAME]["leases"] > 0 and models(daemon)[names[2]]["pinned"]
    run(page, "distorch.unloadIdle")
    said(page, "No model is idle")
    assert ask(server, "POST", "/distorch/unload", {"idle": True}, Origin="http://example.org")[0] \
        == 403
    assert ask(server, "POST", "/distorch/unload", {"idle": 1})[0] == 400
    ask(server, "POST", "/distorch/unpin", {"model": models(daemon)[names[2]]["id"]})
    assert ours_of(page) == []


def test_the_models_of_a_workflow_are_pinned(server, daemon, open_page):
    free(server, daemon)
    hold(server, daemon)
    assert ask(server, "POST", "/distorch/load",
               {"file": f"diffusion_models/{KINDS['sd3_1'][0]}"})[0] == 200
    page = open_page(server)
    show(page, {**sample("sd3_2"),
                "stock": node("UNETLoader", unet_name=KINDS["sd3_1"][0], weight_dtype="default"),
                "vae": node("VAELoader", vae_name="tiny_vae.safetensors"),
                "other": node("DistorchVAELoader", vae_name="tiny_vae.safetensors")})
    page.do("app.graph.nodes.find((one) => one.type === 'VAELoader').widgets[0].value = args[0]",
            HARM)
    run(page, "distorch.pin")
    said(page, "Pinned 2 models; not in memory: ", "tiny_vae.safetensors", HARM)
    pinned = {name for name, one in models(daemon).items() if one["pinned"]}
    assert pinned == {NAME, KINDS["sd3_1"][0]}
    for name in pinned:
        ask(server, "POST", "/distorch/unpin", {"model": models(daemon)[name]["id"]})
    page.do("app.graph.clear()")
    run(page, "distorch.pin")
    said(page, "No loader with a model file")
    assert page.do("return window.harmed ?? null") is None


def test_the_doctor_is_asked_by_the_keyboard_and_by_a_command(server, daemon, open_page):
    page = open_page(server)
    open_tab(page)
    page.press(page.find(".distorch-panel .doctor button"), ENTER)
    page.wait("const text = (() => {" + DOCTOR + "})(); return /ComfyUI's pack is/.test(text)")
    text = page.do(DOCTOR)
    assert "daemon answers" in text and str(daemon.socket) in text
    page.do("app.extensionManager.sidebarTab.toggleSidebarTab('distorch')")
    page.wait("return document.querySelector('.distorch-panel') === null")
    run(page, "distorch.doctor")
    page.wait("const text = (() => {" + DOCTOR + "})(); return /daemon answers/.test(text)")
    run(page, "distorch.doctor")  # it is open already
    page.wait("const text = (() => {" + DOCTOR + "})(); return /daemon answers/.test(text)")
    keep_picture(page, "doctor")
    assert ask(server, "POST", "/distorch/doctor", {}, Sec_Fetch_Site="cross-site")[0] == 403
    labels = page.do("return app.extensionManager.command.commands.map((one) => one.label)")
    assert {"Unload all idle models", "Pin this workflow's models", "Check distorchd"} <= set(labels)


def test_without_a_daemon_the_doctor_says_what_to_do(server_alone, open_page):
    page = open_page(server_alone)
    run(page, "distorch.doctor")
    page.wait("const text = (() => {" + DOCTOR + "})(); return /fix: start it/.test(text)")
    assert "nobody.sock" in page.do(DOCTOR)


def test_a_daemon_of_another_version_is_told_of(tmp_path, daemon, open_page):
    base = make_base(tmp_path / "base")
    pack = base / "custom_nodes/distorch"
    pack.unlink()
    shutil.copytree(ROOT / "comfyui_plugin", pack, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "client/python", pack / "binding")
    project = (pack / "pyproject.toml").read_text()
    (pack / "pyproject.toml").write_text(project.replace('version = "', 'version = "9.'))
    server = Server(base, daemon.socket).start()
    try:
        page = open_page(server)
        open_tab(page)
        page.wait("return /Two versions: the daemon is .*pack 9\\./.test((() => {" + PANEL + "})())")
        run(page, "distorch.doctor")
        page.wait("const text = (() => {" + DOCTOR + "})();"
                  "return /✖ the daemon is .*pack 9\\.[^]*fix: scripts.install --plugin/.test(text)")
    finally:
        server.stop()


def test_without_distorchctl_the_doctor_says_so(base, daemon, tmp_path):
    alone = tmp_path / "libdistorch.so.1"  # nothing lies beside it
    shutil.copy(os.environ["DISTORCH_LIBRARY"], alone)
    server = Server(base, daemon.socket, environment={
        "DISTORCH_LIBRARY": str(alone), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}).start()
    try:
        status, found = ask(server, "POST", "/distorch/doctor", {})
        assert status == 200
        assert "distorchctl was not found" in [one["text"] for one in found["checks"]]
    finally:
        server.stop()


def test_the_switch_turns_it_off_and_on_without_a_restart(server, daemon, open_page):
    free(server, daemon)
    page = open_page(server)
    show(page, sample("sd3_2"))
    page.wait(PILL)
    switch = "await app.extensionManager.setting.set('distorch.enable', args[0])"
    try:
        page.do(switch, False)
        page.wait("const found = (() => {" + PILL + "})();"
                  "return ['distorchd off', 'off'].includes(found?.[0])")
        assert queue(page) == 'loaded by ComfyUI itself: "Use distorchd" is off in the settings'
        assert NAME not in models(daemon)
        assert "switched off" in open_tab(page)
    finally:
        page.do(switch, True)
    page.wait("const found = (() => {" + PILL + "})(); return /^(RAM|\\d+%)/.test(found?.[0])")
    assert queue(page).startswith("served by distorchd")
