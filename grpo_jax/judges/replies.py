"""Replies that were received once, kept on disk by the content of the question. A damaged file is as good as none."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Replies:
    """A folder of replies; None keeps nothing."""

    folder: Path | None

    def read(self, url: str, body: dict[str, Any]) -> str | None:
        """The reply to a request; None if there is none, or none that is whole."""
        if self.folder is None:
            return None
        try:
            kept = json.loads(self._path(url, body).read_bytes())
            whole = isinstance(kept, dict) and kept.get("check") == _digest(kept["reply"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
            return None
        return kept["reply"] if whole else None

    def write(self, url: str, body: dict[str, Any], reply: str) -> None:
        """Keeps a reply. Other processes see the whole file or none."""
        if self.folder is None:
            return
        path, temporary = self._path(url, body), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
                temporary = file.name
                json.dump({"reply": reply, "check": _digest(reply)}, file)
            os.replace(temporary, path)
        except OSError as error:
            logging.getLogger("grpo_jax").warning("a judge's reply cannot be kept in %s: %s", self.folder, error)
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def _path(self, url: str, body: dict[str, Any]) -> Path:
        name = _digest(json.dumps([url, body], sort_keys=True))
        return Path(str(self.folder)) / name[:2] / f"{name}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
