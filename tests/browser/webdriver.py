"""A client of WebDriver for Chromium: only what the tests of the page need, so nothing to install."""

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

# Web elements are objects with this key (W3C WebDriver, section 12).
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

# A guard against hanging; everything is quick unless it is broken.
DEADLINE = 60

KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Space": " "}


class Browser:
    """Chromium without a window, driven by chromedriver."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait_for_driver()
            options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}
            capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.driver.kill()
            raise

    def _wait_for_driver(self):
        end = time.monotonic() + DEADLINE
        while True:
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            if time.monotonic() > end:
                raise TimeoutError("chromedriver does not start")
            time.sleep(0.1)

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def call(self, method, path, body=None):
        """A call of this session."""
        return self._call(method, self.session + path, body)

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """The result of the body of a function in the page."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        """The first element that matches and is shown, once there is one."""
        found = self.wait(
            f"an element {selector}",
            "return [...document.querySelectorAll(arguments[0])].find((one) => one.checkVisibility()) ?? null",
            selector,
        )
        return Element(self, found[ELEMENT])

    def wait(self, what, script, *arguments):
        """The first result of a script that is true."""
        end = time.monotonic() + DEADLINE
        while True:
            result = self.run(script, *arguments)
            if result:
                return result
            if time.monotonic() > end:
                raise TimeoutError(f"waited for {what}; the page shows:\n" + self.run("return document.body.innerText"))
            time.sleep(0.1)

    def press(self, *keys):
        """Presses keys, whatever has the focus."""
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def resize(self, width, height, scale=1):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def colour_scheme(self, scheme):
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self):
        """The messages of the console since the last call."""
        return self.call("POST", "/se/log", {"type": "browser"})

    def screenshot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("GET", "/screenshot")))


class Element:
    def __init__(self, browser, reference):
        self.browser = browser
        self.path = f"/element/{reference}"

    def click(self):
        self.browser.call("POST", f"{self.path}/click", {})

    def type(self, text):
        self.browser.call("POST", f"{self.path}/clear", {})
        self.browser.call("POST", f"{self.path}/value", {"text": text})

    def text(self):
        return self.browser.call("GET", f"{self.path}/text")
