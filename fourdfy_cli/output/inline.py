"""Files as text inside HTML: a page that needs nothing beside it. Every word that somebody typed is escaped here or by the caller."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path

KINDS = {".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def data_uri(path: Path) -> str:
    """A file's bytes as the address of itself."""
    return f"data:{KINDS[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def film(path: Path, caption: str) -> str:
    """A figure that plays a video in a loop."""
    video = f'<video controls loop autoplay muted playsinline style="max-width:100%" src="{data_uri(path)}"></video>'
    return f"<figure>{video}<figcaption>{escape(caption)}</figcaption></figure>"
