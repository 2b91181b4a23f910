#!/usr/bin/env python3
"""The page of `potluck ui` in a real Chromium, with a real swarm: page_test.py PROGRAMS [SCREENSHOTS]"""

import sys
import time
from pathlib import Path

from cluster import Cluster
from webdriver import Browser

HOSTILE = "<img src=x onerror=window.hacked=1>.bin"
SECTIONS = ["downloads", "find", "library", "network", "limits"]
CHECKS = (Path(__file__).parent / "checks.js").read_text()

# Whether the download with a name, the second argument, is in a state, the first one.
IS_IN_STATE = """
return [...document.querySelectorAll(".transfer")].some(
  (card) => card.dataset.state === arguments[0] && card.querySelector("h3").textContent === arguments[1],
)
"""
MAP_IS_FULL = """
const label = document.querySelector(".transfer canvas").getAttribute("aria-label");
return /: (\\d+) of \\1 parts verified, 0 on the way/.test(label);
"""

class PageTest:
    def __init__(self, browser, screenshots):
        self.browser = browser
        self.screenshots = screenshots

    def shoot(self, name):
        if self.screenshots:
            self.browser.screenshot(self.screenshots / f"{name}.png")

    def go(self, section):
        self.browser.find(f"nav a[href='#{section}']").click()
        self.browser.find(f"#{section}-title")

    def wait_for_state(self, state, name):
        self.browser.wait(f"{name} is {state}", IS_IN_STATE, state, name)

    def progress(self):
        return self.browser.run("return document.querySelector('.transfer progress').value")

    def check_views(self, note):
        """Every section, wide and on a phone, in light and dark."""
        for width, height in ((1200, 900), (360, 740)):
            self.browser.resize(width, height)
            for scheme in ("light", "dark"):
                self.browser.colour_scheme(scheme)
                for section in SECTIONS:
                    self.go(section)
                    violations = self.browser.run(CHECKS)
                    assert not violations, f"{section}, {width} px, {scheme}, {note}: {violations}"
                    self.shoot(f"{note}-{section}-{width}-{scheme}")
        self.browser.resize(1200, 900)
        self.browser.colour_scheme("light")

    def open_by_link(self, link):
        self.browser.open(link)
        self.browser.find("#downloads-empty")
        assert "token" not in self.browser.run("return location.href"), "the token left the address"
        cookie = self.browser.run("return document.cookie")
        assert cookie == "", "scripts cannot read the cookie"

    def start_download_by_keyboard(self):
        self.go("find")
        self.browser.find("#words").type("weights")
        self.browser.press("Enter")
        self.browser.wait("one result", "return document.querySelectorAll('#results tbody tr').length === 1")
        self.browser.press("Tab", "Tab")
        focused = self.browser.run("return document.activeElement.getAttribute('aria-label')")
        assert focused == "Get weights.bin", f"Tab leads to {focused}"
        outline = self.browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus can be seen"
        self.browser.press("Enter")
        self.browser.wait("the start is announced", "return document.querySelector('#toast').textContent.includes('weights.bin')")

    def watch_to_the_end(self):
        self.go("downloads")
        self.wait_for_state("running", "weights.bin")
        self.browser.wait("progress", "return document.querySelector('.transfer progress').value >= 20")
        self.browser.wait("three peers", "return document.querySelectorAll('.transfer tbody tr').length === 3")
        self.check_views("running")
        self.go("downloads")

        self.browser.find("button[aria-label='Cancel weights.bin']").click()
        self.browser.wait("the question", "return document.querySelector('#confirm').open")
        self.browser.press("Escape")
        self.browser.wait("the question goes", "return !document.querySelector('#confirm').open")
        self.wait_for_state("running", "weights.bin")

        pause = self.browser.find("button[aria-label='Pause weights.bin']")
        pause.click()
        self.wait_for_state("paused", "weights.bin")
        focused = self.browser.run("return document.activeElement.getAttribute('aria-label')")
        assert focused == "Resume weights.bin", f"the focus is lost to {focused}"
        before = self.progress()
        time.sleep(1)
        assert self.progress() == before, "nothing arrives while it is paused"
        self.browser.press("Enter")
        self.wait_for_state("running", "weights.bin")
        self.browser.wait("progress", "return document.querySelector('.transfer progress').value > arguments[0]", before)

        self.wait_for_state("done", "weights.bin")
        self.browser.wait("a full map", MAP_IS_FULL)
        self.browser.wait("the end is announced", "return document.querySelector('#toast').textContent.includes('verified')")

    def change_limits(self):
        self.go("limits")
        self.browser.find("#download-limit").type("256KiB/s")
        self.browser.press("Enter")
        self.browser.wait("the limit", "return document.querySelector('#toast').textContent === 'Changed the limits'")
        self.browser.find("#download-limit").type("fast")
        self.browser.press("Enter")
        self.browser.wait("the error", "return document.querySelector('#toast.bad')?.textContent.includes('fast')")

    def see_the_fleet(self):
        self.go("network")
        self.browser.wait("four peers", "return document.querySelectorAll('#peers tbody tr').length === 4")
        rows = self.browser.run("return document.querySelector('#peers tbody').innerText")
        assert rows.count("this peer") == 1, rows

    def hostile_name_stays_text(self):
        self.go("find")
        self.browser.find("#words").type("")
        self.browser.press("Enter")
        self.browser.find("button[aria-label^='Get <img']").click()
        self.go("downloads")
        self.wait_for_state("done", HOSTILE)
        for section in ("find", "library"):
            self.go(section)
            self.browser.wait(
                f"the name in {section}",
                "return [...document.querySelectorAll('#' + arguments[0] + ' bdi')].some((one) => one.textContent === arguments[1])",
                section,
                HOSTILE,
            )
        assert self.browser.run("return document.images.length") == 1, "only the logo is an image"
        assert self.browser.run("return window.hacked ?? null") is None, "the name ran"

    def console_is_clean(self):
        messages = [entry["message"] for entry in self.browser.console() if entry["level"] != "INFO"]
        # The refused limit is an answer of its own.
        messages = [message for message in messages if "400 (Bad Request)" not in message]
        assert not messages, messages


def main():
    programs = sys.argv[1]
    screenshots = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    cluster = Cluster(programs)
    try:
        link = cluster.start_all(HOSTILE, ["700KiB/s", "500KiB/s", "300KiB/s"])
        browser = Browser()
        try:
            test = PageTest(browser, screenshots)
            test.open_by_link(link)
            test.start_download_by_keyboard()
            test.watch_to_the_end()
            test.see_the_fleet()
            test.hostile_name_stays_text()
            test.change_limits()
            test.check_views("done")
            test.console_is_clean()
        finally:
            browser.close()
    finally:
        cluster.close()
    print("the page works in Chromium")


if __name__ == "__main__":
    main()
