"""What one visitor may ask of a Space, so that the others are served, too."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..errors import InputError

MAX_FILES = 32
MAX_FILE_SIZE = "64mb"
MAX_BYTES = 128 * 2**20  # of one upload, and of all files that are looked at together
MAX_SECONDS = 60  # for the files of one request: what is left then is not read
MAX_PIXELS = 1024 * 1024  # of a cutout, in each band
PICTURE_SIZE = 256  # pixels of a cutout that are shown, around the centre


def check_files(paths: list[str]) -> None:
    """
    Raises:
        [`InputError`]: too many files, or too large ones, before any is read.
    """
    if len(paths) > MAX_FILES:
        raise InputError(
            f"{len(paths)} files are more than {MAX_FILES} at once: drop fewer, or use the package for large sets."
        )
    size = sum(path.stat().st_size for path in map(Path, paths) if path.is_file())
    if size > MAX_BYTES:
        raise InputError(
            f"These files have {size / 2**20:.0f} MiB, more than {MAX_BYTES // 2**20} together: drop fewer, or cut "
            "the objects out."
        )


class LimitedUploads:
    """ASGI middleware that takes no request of more than `MAX_BYTES`, whatever length it states."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if int(dict(scope["headers"]).get(b"content-length", b"0")) > MAX_BYTES:
            return await _refuse(send)
        received = 0

        async def count() -> dict[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= MAX_BYTES else {"type": "http.disconnect"}

        await self.app(scope, count, send)


async def _refuse(send: Callable) -> None:
    body = json.dumps({"detail": f"more than {MAX_BYTES // 2**20} MiB at once: drop fewer files"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
