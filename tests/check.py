"""Everything a change must pass, in one command: `python tests/check.py`. Arguments go to pytest."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
STEPS = {
    "lint": [TOOLS / "ruff", "check", "."],
    "format": [TOOLS / "ruff", "format", "--check", "."],
    "types": [TOOLS / "mypy"],
    "import rules": [TOOLS / "lint-imports", "--no-cache"],
    "tests": [sys.executable, "-m", "pytest", *sys.argv[1:]],
}


def main() -> int:
    """Run every step, even after one that failed, and return 1 if any did."""
    failed = []
    for name, command in STEPS.items():
        began = time.monotonic()
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        if subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode:
            failed.append(name)
        sys.stdout.write(f"== {name}: {time.monotonic() - began:.0f} s\n")
    sys.stdout.write(f"failed: {', '.join(failed)}\n" if failed else "all steps passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
