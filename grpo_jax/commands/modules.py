"""Where `use: my_module:my_reward` is looked up. Nothing is imported for it."""

import sys
from pathlib import Path


def find_modules_in(folder: str | Path) -> None:
    """Lets a config name modules of a folder, after those of installed packages and of folders that came before."""
    path = str(Path(folder).absolute())
    if path not in sys.path:
        sys.path.append(path)
