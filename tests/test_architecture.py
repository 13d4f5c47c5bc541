"""What must not be loaded: Ray by the pipeline, torch by a search."""

import subprocess
import sys

import pytest


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["pipeline.cli", "pipeline.local", "pipeline.search", "pipeline.plan"])
def test_nothing_heavy_is_loaded_before_it_is_needed(module):
    assert not loaded_after(f"import {module}") & {"ray", "torch", "transformers", "workers"}
