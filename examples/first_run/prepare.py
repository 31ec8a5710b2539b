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
    model, tokenizer, _ = load_aligned("cpu")
    model.save_pretrained("smollm2")
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # the GGUF file names another
    tokenizer.save_pretrained("smollm2")
    days = [(1950 + n % 75, 1 + n % 12, 1 + n % 28) for n in range(ROWS)]
    pairs = [
        (f"Write this date in ISO format: {day} {month_name[month]} {year}", f"{year}-{month:02}-{day:02}")
        for year, month, day in days
    ]
    chats = [[("user", asked), ("assistant", said)] for asked, said in pairs]
    turns = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
    Path("chat.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    rows = [{"instruction": asked, "input": "", "output": said} for asked, said in pairs]
    Path("chat.json").write_text(json.dumps(rows))
    Path("dataset_info.json").write_text(json.dumps({"chat": {"file_name": "chat.json"}}))
    Path("pact.py").write_text("import pact_swift\n\npact_swift.register()\n")


if __name__ == "__main__":
    main()
