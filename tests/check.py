"""Everything a change must pass, in one command: `python tests/check.py`.

`--without-ray` leaves out the tests that start a Ray; other arguments go to pytest.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    *(argument for argument in sys.argv[1:] if argument != "--without-ray"),
]
NOTHING_CHOSEN = 5  # pytest's exit code where the arguments leave none of a step's tests
STEPS = {
    "lint": [TOOLS / "ruff", "check", "."],
    "format": [TOOLS / "ruff", "format", "--check", "."],
    "types": [TOOLS / "mypy"],
    "import rules": [TOOLS / "lint-imports", "--no-cache"],
    # A worker a core, each with torch in memory. A Ray starts processes enough of its own.
    "tests": [*PYTEST, "-m", "not ray", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"],
    "tests on Ray": [*PYTEST, "-m", "ray"],
}
if "--without-ray" in sys.argv:
    del STEPS["tests on Ray"]


def main() -> int:
    """Run every step, even after one that failed, and return 1 if any did."""
    failed = []
    for name, command in STEPS.items():
        began = time.monotonic()
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        code = subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
        if code and not (name.startswith("tests") and code == NOTHING_CHOSEN):
            failed.append(name)
        sys.stdout.write(f"== {name}: {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "all steps passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
