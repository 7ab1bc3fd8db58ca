"""What a test reads of a folder that was written."""

import csv
import hashlib
from pathlib import Path


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file by its path below ``root``."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
