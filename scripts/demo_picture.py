"""Plays the demo for real and keeps its screen as docs/images/demo.svg.

.venv/bin/python scripts/demo_picture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from tidegate.demo.main import run
from tidegate.demo.screen import Screen

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.svg"


def main() -> int:
    """Exit status of the demo."""
    console = Console(stderr=True, record=True, width=100, highlight=False)
    status = run(screen=Screen(console))
    if status == 0:
        PICTURE.parent.mkdir(exist_ok=True)
        console.save_svg(str(PICTURE), title="make demo")
    return status


if __name__ == "__main__":
    sys.exit(main())
