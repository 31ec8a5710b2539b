"""A table on several ranks whose parameters are sharded; test_trl.py has ranks with whole ones."""

from __future__ import annotations

from forks import run_script


def test_fsdp2_full_fine_tuning_equals_a_whole_model_with_a_copy(tmp_path):
    """For each term that looks at the data's positions."""
    folder = tmp_path / "runs"
    folder.mkdir()
    run_script("fsdp_table.py", str(folder), log=tmp_path / "log", ranks=2)
    assert sorted(path.name for path in folder.iterdir()) == ["easing", "hold", "published"]
