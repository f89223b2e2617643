"""Headless Chromium over the WebDriver protocol (W3C Recommendation, 2018), with the standard library alone."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --host-resolver-rules=MAP%20*%20~NOTFOUND,EXCLUDE%20127.0.0.1"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, by the protocol


class Browser:
    """One session of a driver that listens on `port`."""

    def __init__(self, port: int, profile: Path, size: tuple[int, int], downloads: Path | None):
        self._base = f"http://127.0.0.1:{port}/session"
        arguments = [word.replace("%20", " ") for word in ARGUMENTS.split()]
        arguments += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        options = {"binary": CHROMIUM, "args": arguments}
        options |= {"prefs": {"download.default_directory": str(downloads)}} if downloads else {}
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self._base += f"/{session['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a JavaScript function body returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def choose_files(self, css: str, *paths: Path) -> None:
        """Give files to the `<input type="file">` that `css` finds."""
        self._call("POST", f"/element/{self._find(css)}/value", {"text": "\n".join(map(str, paths))})

    def press(self, *keys: str) -> None:
        """One key after another, to what has the focus; keys of one text, such as Control and z, at once."""
        actions = []
        for chord in keys:
            actions += [{"type": "keyDown", "value": key} for key in chord]
            actions += [{"type": "keyUp", "value": key} for key in reversed(chord)]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def click(self, css: str, held: str = "") -> None:
        """The middle of the element that `css` finds, while a key is `held`."""
        place = {"type": "pointerMove", "origin": {_ELEMENT: self._find(css)}, "x": 0, "y": 0}
        moves = [place, {"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        pointer = {"type": "pointer", "id": "mouse", "actions": [{"type": "pause"}, *moves, {"type": "pause"}]}
        keys = [{"type": kind, "value": held} for kind in ("keyDown", "keyUp") if held]
        keys = keys[:1] + [{"type": "pause"}] * 3 + keys[1:]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}, pointer]})

    def _find(self, css: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT]

    def wait(self, script: str, seconds: float = 30) -> Any:
        """The first value of a JavaScript function body that is true."""
        return wait(lambda: self.run(script), seconds, script)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        self._call("DELETE", "")


@contextmanager
def open_browser(
    profile: Path, size: tuple[int, int] = (1280, 1400), downloads: Path | None = None
) -> Iterator[Browser]:
    """A browser with a fresh profile, which cannot reach anything but this machine."""
    port = free_port()
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: is_open(port), 30, "chromedriver")
        browser = Browser(port, profile, size, downloads)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(30)


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"{what}: nothing within {seconds} s")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
