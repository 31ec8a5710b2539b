"""docs/how-it-works.md names the functions that a batch passes through, in their order."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest
from walk import walk_of_a_step

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| +\d+ \| `(\w+)` \| \[`(\S+?)\.py`\]\((\S+)\) \|", re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
def test_the_walk_in_the_documents_is_the_real_one(tmp_path):
    rows = ROW.findall((ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8"))
    told = [(file.replace("/", ".").removesuffix(".__init__"), function) for function, file, _ in rows]
    assert len(told) >= 15
    assert all((ROOT / "docs" / link).is_file() for *_, link in rows)
    walked = [step for step in walk_of_a_step(str(tmp_path)).functions if step in told]
    assert walked == list(dict.fromkeys(told))
    stays = [module for module, _ in groupby(module for module, _ in told)]
    assert len(stays) - len(set(stays)) < 5, "returns to a module already left"
