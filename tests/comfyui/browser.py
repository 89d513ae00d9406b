# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, by the protocol of its own chromedriver: no package of Python is needed."""
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
START_SECONDS = 60
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--window-size=1400,1000", "--no-first-run", "--disable-extensions"]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of a reference


class PageFailed(Exception):
    """What the script in the page raised."""


class Page:
    """One window."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with open(folder / "chromedriver.log", "wb") as log:
            self._driver = subprocess.Popen([DRIVER, f"--port={self._url.rsplit(':')[-1]}"],
                                            stdout=log, stderr=log)
        self._session = None
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                self._ask("GET", "/status")
                break
            assert time.monotonic() < end and self._driver.poll() is None, "chromedriver"
            time.sleep(0.05)
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}/profile"]}
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}})
        self._session = made["sessionId"]
        self._ask("POST", self._at("/timeouts"), {"script": 60000, "pageLoad": 120000})

    def _at(self, path):
        return f"/session/{self._session}{path}"

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=150) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as failure:
            raise PageFailed(json.loads(failure.read())["value"]["message"]) from failure

    def go(self, url):
        self._ask("POST", self._at("/url"), {"url": url})

    def do(self, script, *arguments):
        """What the body of an async function of `args` returns."""
        found = self._ask("POST", self._at("/execute/async"), {"args": list(arguments), "script":
                          "const args = [...arguments], done = args.pop();"
                          f"(async (...args) => {{ {script} }})(...args)"
                          ".then((value) => done({ value: value ?? null }),"
                          "      (error) => done({ error: String(error?.stack ?? error) }));"})
        if "error" in found:
            raise PageFailed(found["error"])
        return found["value"]

    def wait(self, script, *arguments, seconds=60):
        """What it returns once that is true."""
        end = time.monotonic() + seconds
        while True:
            found = self.do(script, *arguments)
            if found:
                return found
            assert time.monotonic() < end, f"not in {seconds} s: {script}"
            time.sleep(0.1)

    def find(self, selector):
        return self._ask("POST", self._at("/element"),
                         {"using": "css selector", "value": selector})[ELEMENT]

    def press(self, element, keys):
        self._ask("POST", self._at(f"/element/{element}/value"), {"text": keys})

    def resize(self, width, height):
        self._ask("POST", self._at("/window/rect"), {"width": width, "height": height})

    def complaints(self):
        """The lines of the console that are errors."""
        return [line["message"] for line in self._ask("POST", self._at("/se/log"),
                                                      {"type": "browser"})
                if line["level"] == "SEVERE"]

    def picture(self):
        """PNG, in base64."""
        return self._ask("GET", self._at("/screenshot"))

    def close(self):
        with contextlib.suppress(OSError, PageFailed):
            if self._session is not None:
                self._ask("DELETE", self._at(""))
        self._driver.terminate()
        try:
            self._driver.wait(20)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
