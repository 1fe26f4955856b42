"""A headless Chromium, driven over a pipe: its window cannot be narrower than 500 pixels, but its pages can."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys

BROWSER = next(filter(None, map(shutil.which, ["chromium", "google-chrome", "chromium-browser"])), None)
PATIENCE = 30  # seconds
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
]
PLUMB = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


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
        for domain in ("Page", "Runtime", "Network"):
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
            assert ready, f"the browser says nothing for {PATIENCE} seconds"
            more = os.read(self.read.fileno(), 1 << 16)
            assert more, "the browser is gone"
            self.unread += more
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, path, width, scheme):
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())

    def run(self, code):
        answer = self.call("Runtime.evaluate", expression=f"(() => {{ {code} }})()", returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

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
