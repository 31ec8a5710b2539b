"""A model and data for a first run, into the working directory: `python -m examples.first_run.prepare`.

Writes `smollm2/`; `chat.jsonl` for Axolotl and ms-swift; `chat.json` and `dataset_info.json` for LLaMA-Factory; and
`pact.py`, which registers PACT in ms-swift.
"""

from __future__ import annotations

import json
from calendar import month_name
from pathlib import Path

from examples.demo.models import load_aligned

ROWS = 80


def main() -> None:
    """Write them all."""
    days = [(1950 + n % 75, 1 + n % 12, 1 + n % 28) for n in range(ROWS)]
    pairs = [
        (f"Write this date in ISO format: {day} {month_name[month]} {year}", f"{year}-{month:02}-{day:02}")
        for year, month, day in days
    ]
    chats = [[("user", asked), ("assistant", said)] for asked, said in pairs]
    turns = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    rows = [{"instruction": asked, "input": "", "output": said} for asked, said in pairs]
    files = {
        "chat.jsonl": "".join(json.dumps({"messages": one}) + "\n" for one in turns),
        "chat.json": json.dumps(rows),
        "dataset_info.json": json.dumps({"chat": {"file_name": "chat.json"}}),
        "pact.py": "import pact_swift\n\npact_swift.register()\n",
    }
    # LLaMA-Factory's registry and ms-swift's plugin have these names in a project of one's own, too.
    if others := [
        name for name, text in files.items() if Path(name).exists() and Path(name).read_text() != text
    ]:
        raise SystemExit(f"{', '.join(others)} here would be overwritten: move them away")
    for name, text in files.items():
        Path(name).write_text(text)
    model, tokenizer, _ = load_aligned("cpu")
    model.save_pretrained("smollm2")
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # the GGUF file names another
    tokenizer.save_pretrained("smollm2")


if __name__ == "__main__":
    main()
