"""The figures of the documentation: `python -m tools.figures` (`make figures`) draws them into `docs/images`.

Each is drawn twice, for light pages and for dark ones, as wide as a phone, in the colours of the audit's charts.
"""

from __future__ import annotations

import sys
from functools import partial

from tools.figures.measured import along, cost, frontier
from tools.figures.method import method
from tools.figures.style import IMAGES, both


def main() -> None:
    """Draw every figure."""
    if sys.argv[1:]:
        sys.exit("It takes no arguments: every figure is drawn.")
    IMAGES.mkdir(parents=True, exist_ok=True)
    both("method", method, 5.6)
    both("frontier", frontier, 6.4)
    both("frontier-gsm8k", partial(frontier, task="gsm8k"), 6.4)
    both("frontier-benign", partial(frontier, contamination=0.0), 6.4)
    both("along", along, 4.2)
    both("cost", cost, 4.6)


if __name__ == "__main__":
    main()
