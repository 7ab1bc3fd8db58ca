"""Marks in every place of a request, and the search for them in all that a real server writes and answers.

    python tests/campaigns/privacy.py --json privacy.json

Sends what tests/serving/test_privacy.py sends, made of synthetic head CT. Ends with status 1 where a mark was found in
a file, in an answer that had no business to repeat it, or in what the client prints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from campaign import finish, make_artifact, on_machine
from leaks import traces
from marked import Visit, marked_bodies, pay_visit
from pydicom import dcmread


def to_json(visit: Visit, bodies: int) -> dict[str, Any]:
    """Return the counts of a visit."""
    return {
        "bodies": bodies,
        "marks": len(visit.sent),
        "requests": len(visit.answers),
        "codes": dict(sorted(Counter(answer.status_code for answer in visit.answers).items())),
        "files_read": visit.read,
        "files_with_marks": len(visit.left),
        "answers_with_marks": len(visit.repeated),
        "marks_printed_by_the_client": len(traces(visit.printed.encode())),
    }


def main() -> int:
    """Pay one visit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("privacy.json"))
    asked = parser.parse_args()
    machine = on_machine()
    with tempfile.TemporaryDirectory(prefix="medad-privacy-") as folder:
        root = Path(folder)
        artifact, slices = make_artifact(root / "made")
        pixels = dcmread(BytesIO(slices[0])).pixel_array
        bodies = marked_bodies(lambda number: dcmread(BytesIO(slices[number])), pixels)
        (root / "visit").mkdir()
        visit = pay_visit(artifact, bodies, root / "visit")
    found = to_json(visit, len(bodies))
    finish(asked.json, machine, found)
    return int(any(found[name] for name in found if name.endswith("with_marks") or "printed" in name))


if __name__ == "__main__":
    sys.exit(main())
