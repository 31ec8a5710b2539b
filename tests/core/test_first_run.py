"""The files of a first run: none of a user's own is written over."""

from __future__ import annotations

import pytest
from tiny import tiny_model, tiny_tokenizer

from examples.first_run import prepare


def test_files_of_ones_own_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = []
    monkeypatch.setattr(
        prepare, "load_aligned", lambda device: loaded.append(device) or (tiny_model(), tiny_tokenizer(), "")
    )
    (tmp_path / "pact.py").write_text("mine")
    with pytest.raises(SystemExit, match=r"pact\.py here would be overwritten"):
        prepare.main()
    assert [path.name for path in tmp_path.iterdir()] == ["pact.py"]
    assert not loaded
    (tmp_path / "pact.py").unlink()
    prepare.main()
    prepare.main()  # the same files again
    names = {"smollm2", "chat.jsonl", "chat.json", "dataset_info.json", "pact.py"}
    assert {path.name for path in tmp_path.iterdir()} == names
