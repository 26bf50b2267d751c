"""docs/coverage.md says what the instruction table holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_coverage_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "coverage_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
