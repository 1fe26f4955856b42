"""A headless Chromium, controlled over a pipe. Emulated pages can be narrower than its minimum window, 500 pixels."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

BROWSER = next(filter(None, map(shutil.which, ["chromium", "google-chrome", "chromium-browser"])), None)
PATIENCE = 30  # seconds
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
]
PLUMB = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)

KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, ""), "ArrowLeft": (37, ""), "ArrowUp": (38, ""),
        "ArrowRight": (39, ""), "ArrowDown": (40, "")}  # fmt: skip

# JavaScript for a page: OUTSIDE lists elements outside the page or a chart, PALE texts with a contrast below 4.5.
OUTSIDE = """
const out = [], width = document.documentElement.clientWidth;
for (const one of document.querySelectorAll("body *")) {
  if (one.closest(".box table") || one.matches("script, .unseen") || !one.checkVisibility()) continue;
  const box = one.getBoundingClientRect(), svg = one.closest("svg");
  if (box.width && (box.left < -1 || box.right > width + 1)) out.push("beside the page: " + one.outerHTML.slice(0, 90));
  if (svg && one.matches("text")) {
    const around = svg.getBoundingClientRect();
    if (box.left < around.left - 1 || box.right > around.right + 1 || box.bottom > around.bottom + 1)
      out.push("beside the chart: " + one.textContent);
  }
}
return out;
"""

PALE = """
const parse = (text) => {
  const numbers = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number), one = text.startsWith("color(") ? 1 : 255;
  return [...numbers.slice(0, 3).map((part) => part / one), numbers[3] ?? 1];
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
const ground = (one) => {
  if (!one) return [1, 1, 1];
  const own = parse(getComputedStyle(one).backgroundColor);
  return own[3] === 1 ? own : over(own, ground(one.parentElement));
};
const light = (colour) => colour.slice(0, 3)
  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
const out = [];
for (const one of document.querySelectorAll("body *")) {
  if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || !one.checkVisibility()) continue;
  const ink = getComputedStyle(one)[one.closest("svg") ? "fill" : "color"], below = ground(one);
  const [low, high] = [light(over(parse(ink), below)), light(below)].sort((a, b) => a - b);
  if ((high + 0.05) / (low + 0.05) < 4.5) out.push(one.outerHTML.slice(0, 90));
}
return out;
"""


class Browser:
    """A headless Chromium with one tab."""

    def __init__(self, folder):
        ends = [*os.pipe(), *os.pipe()]
        theirs_in, ours_out, ours_in, theirs_out = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends]
        for end in ends:
            os.close(end)
        command = [sys.executable, "-c", PLUMB, str(theirs_in), str(theirs_out), BROWSER, *FLAGS]
        command.append(f"--user-data-dir={folder}")
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=quiet, stderr=quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.write, self.read = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb", buffering=0)
        self.unread = b""
        self.numbers, self.session, self.events = itertools.count(1), None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while (answer := self.message()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def message(self):
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.read], [], [], PATIENCE)
            assert ready, f"no message from the browser for {PATIENCE} seconds"
            more = os.read(self.read.fileno(), 1 << 16)
            assert more, "the browser has exited"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, path, width, scheme):
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, code):
        answer = self.call("Runtime.evaluate", expression=f"(() => {{ {code} }})()", returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition, seconds=PATIENCE):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, key):
        code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def seen(self, method):
        return [event["params"] for event in self.events if event.get("method") == method]

    def close(self):
        self.session = None
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()
        self.write.close()
        self.read.close()
