# SPDX-License-Identifier: Apache-2.0
"""A page of a real ComfyUI in a headless Chromium: what its tests have in common."""
import base64
import os
import pathlib
import time

import browser
import pytest
from conftest import Server

PRIORITIES = iter(range(1, 100))
LOADER = "DistorchDiffusionModelLoader"

needs_browser = pytest.mark.skipif(browser.CHROMIUM is None or browser.DRIVER is None,
                                   reason="chromium and chromedriver are not installed")

#: All nodes of the page, those inside of subgraphs too.
ALL = "const all = [app.graph, ...(app.graph.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);"

#: What a run said of the loader of a type: by which tier, or why not.
SERVED = ALL + """
const said = all.find((node) => node.type === args[0] && node.distorch)?.distorch;
return said ? (said.tier === "stock" ? said.lines.slice(0, 2).join(": ")
                                     : said.lines[0].split(" (")[0]) : null;"""

#: What the badge of the loader of a type says.
BADGE = ALL + """
const own = /^(hot|cold|loading|loaded by|not placed)/;
return all.filter((node) => node.type === args[0]).flatMap((node) => node.badges)
  .map((badge) => (typeof badge === "function" ? badge() : badge).text)
  .find((text) => own.test(text)) ?? null;"""


@pytest.fixture(scope="module")
def server(base, daemon):
    one = Server(base, daemon.socket)
    yield one.start()
    one.stop()


@pytest.fixture(scope="module")
def server_alone(base):
    """Without a daemon."""
    one = Server(base, base / "nobody.sock")
    yield one.start()
    one.stop()


@pytest.fixture
def open_page(tmp_path):
    pages = []

    def start(server):
        folder = tmp_path / f"page-{len(pages)}"
        folder.mkdir()
        pages.append(browser.Page(folder))
        show_first(pages[-1], server)
        return pages[-1]

    yield start
    for page in pages:
        page.close()


def show_first(page, server):
    """Have the page there, with its first workflow."""
    server.post("/api/settings/Comfy.TutorialCompleted", True)
    page.go(f"http://127.0.0.1:{server.port}/")
    page.wait("return Boolean(window.LiteGraph?.registered_node_types?.DistorchVAELoader"
              " && window.app?.canvas?.graph?.nodes.length > 0)")


def threads(server):
    return {path.name for path in pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()}


def cpu_used(server, threads, seconds):
    """Seconds of the processor that these threads take in so many of the clock."""
    def used():
        return sum(int(pathlib.Path(f"/proc/{server.process.pid}/task/{one}/schedstat")
                       .read_text().split()[0]) for one in threads) / 1e9

    before = used()
    time.sleep(seconds)
    return used() - before


def by_number(graph):
    """The prompt as a page has it: its ids are numbers."""
    numbers = {name: str(i + 1) for i, name in enumerate(graph)}
    return {numbers[name]: {**one, "inputs": {
        key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
        for key, value in one["inputs"].items()}} for name, one in graph.items()}


def show(page, graph):
    page.do("await app.loadApiJson(args[0], 'test')", by_number(graph))


def run(page, command):
    page.do("await app.extensionManager.command.execute(args[0])", command)


def saved(page):
    """The workflow as it would be saved, but for what the page numbers anew."""
    graph = page.do("app.graph.updateExecutionOrder(); return app.graph.serialize()")
    graph.pop("id", None)
    order = {"key": lambda one: (len(str(one["id"])), str(one["id"]))}  # 2 before 10
    return {**graph, "nodes": sorted(graph["nodes"], **order)}


def queue(page):
    """Run it; how its loader was served. No run is one that ComfyUI has cached."""
    page.do(ALL + """
const loader = all.find((one) => one.type === args[0]);
loader.widgets.find((one) => one.name === "priority").value = args[1];
loader.distorch = null;
await app.queuePrompt(0, 1);""", LOADER, next(PRIORITIES))
    return page.wait(SERVED, LOADER)


def prompt(page):
    return page.do("return (await app.graphToPrompt()).output")


def ours_of(page):
    return [line for line in page.complaints() if "/distorch/" in line]


def unet(graph):
    (found,) = [one for one in graph["nodes"] if one["type"] in ("UNETLoader",
                                                                 "DistorchDiffusionModelLoader")]
    return found


def keep_picture(page, name):
    """Among what the tests leave behind, when somebody says where."""
    folder = os.environ.get("DISTORCH_ARTIFACTS")
    if folder:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(folder) / f"{name}.png").write_bytes(base64.b64decode(page.picture()))
