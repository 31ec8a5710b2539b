"""The pages of the site: their code runs on a tiny model, their settings are valid, their messages are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import docs_site
import extras
import pytest
import torch
import yaml
from hf import tokenized
from loop import a_batch
from pact_axolotl.check.problems import problems
from preferences import pairs
from sft import TOKENIZER, TOKENS, completions, lora
from test_readme import TOKENS_BY_NAME, named, texts_of_the_code
from test_readme import TRL as README_TRL
from tiny import tiny_model
from typer.main import get_command

import pact_plugin as pact
from pact_plugin.cli.main import app
from pact_plugin.config import Published
from pact_plugin.run.verify import verify_run

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = {page.relative_to(ROOT / "docs").as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
TRL = (ROOT / "integrations" / "pact_trl" / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# --- Python ---


@pytest.fixture
def _a_model(tmp_path, monkeypatch):
    """A folder with a tiny model, its tokens, and trainers that stop soon."""
    monkeypatch.chdir(tmp_path)
    TOKENS.save("safety_tokens.safetensors")
    tiny_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    completions().to_json("pairs.jsonl")


def run(code: str, **names: Any) -> dict[str, Any]:
    """Run a block with a tiny model in place of the one that it names, for two steps."""
    quick = "max_steps=2, use_cpu=True, bf16=False, report_to=[]"
    code = named(code).replace("my-org/my-aligned-model", "model")
    code = re.sub(r'(SFTConfig|DPOConfig|TrainingArguments)\("out"\)', rf'\1("out", {quick})', code)
    names = {"pact": pact} | names
    exec(code, names)
    return names


WAYS = blocks(TEXTS["getting-started.md"], "python")
LOOP, ACCUMULATION, BARE = blocks(TEXTS["integrations/loop.md"], "python")


# The READMEs' may be one text, which then runs once.
SFT = {README_TRL: "README", blocks(TRL, "python")[0]: "TRL", WAYS[0]: "getting started"}


@pytest.mark.usefixtures("_a_model")
@pytest.mark.parametrize("code", SFT, ids=SFT.values())
def test_sft_trainer(code):
    names = run(code, dataset=completions(), lora=lora())
    assert names["trainer"].pact.record.receipt.steps == [[1, 2]]
    assert verify_run("out").startswith("constrained: 2 steps")


@pytest.mark.usefixtures("_a_model")
def test_trainer():
    run(WAYS[1], model=tiny_model(), tokenizer=TOKENIZER, dataset=tokenized())
    assert verify_run("out").startswith("constrained: 2 steps")


@pytest.mark.usefixtures("_a_model")
def test_preferences():
    run(blocks(TRL, "python")[1], preferences=pairs(), lora=lora())
    assert "anchors, 5 safety tokens" in verify_run("out")


@pytest.mark.usefixtures("_a_model")
def test_loop():
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [a_batch(seed) for seed in range(3)]
    run(LOOP, model=model, tokenizer=TOKENIZER, loader=batches, optimizer=optimizer)
    assert verify_run("out").startswith("constrained: 3 steps")
    assert "reference table" in verify_run("out")


@pytest.mark.usefixtures("_a_model")
def test_accumulation():
    model, batches = tiny_model(), [a_batch(seed) for seed in range(2)]
    constraint = pact.PactConstraint(model, TOKENIZER, TOKENS_BY_NAME)
    tokens = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    for batch in batches:
        with constraint.watch():
            output = model(**batch, num_items_in_batch=tokens)
        names = {"constraint": constraint, "output": output, "batch": batch, "batches": batches}
        names = run(ACCUMULATION, number=1, tokens=tokens, **names)
        names["loss"].backward()
    assert constraint.metrics("train")


def test_bare_loss():
    logprobs = torch.randn(5, 9).log_softmax(-1)
    sides = ("student", "reference")
    names = {f"{side}_logprobs": logprobs[:, :4] for side in sides}
    names |= {f"{side}_log_rest": logprobs[:, 4:].logsumexp(1) for side in sides}
    torch.testing.assert_close(run(BARE, **names)["divergence"], torch.zeros(5), atol=1e-6, rtol=0)


def test_judge():
    (code,) = blocks(TEXTS["judge.md"], "python")
    refuses, scores = (
        line.partition("  #")[0] for line in code.splitlines() if line.startswith(("is_", "refusal_"))
    )
    names = run(code)
    assert eval(refuses, names) is True
    assert eval(scores, names) < 0.5


# --- settings, commands, messages ---


@pytest.mark.usefixtures("_a_model")
@pytest.mark.parametrize("page", [page for page in TEXTS if blocks(TEXTS[page], "yaml")])
def test_configurations_are_valid(page):
    for block in blocks(TEXTS[page], "yaml"):
        config = {"plugins": ["pact_axolotl.PactPlugin"], **yaml.safe_load(block)}
        pact.PactConfig.of(config["pact"])
        assert list(problems(config)) == []


def test_quoted_settings_are_valid():
    """Those that the decision tables name, such as `anchors: {tokens: 4}`."""
    text = TEXTS["settings.md"] + TEXTS["troubleshooting.md"] + TEXTS["limits.md"]
    found = re.findall(r"`((?:weight|easing|anchors|hold_data|advanced): [^`]+)`", text)
    assert len(set(found)) >= 8
    for one in set(found):
        settings = yaml.safe_load(one)
        if settings.get("weight") != 0:  # which only measures
            pact.PactConfig.of(settings)


def test_the_defaults_are_the_defaults():
    (block,) = (yaml.safe_load(one)["pact"] for one in blocks(TEXTS["settings.md"], "yaml"))
    assert pact.PactConfig.of(block) == pact.PactConfig()
    published = [yaml.safe_load(one)["pact"] for one in blocks(TEXTS["paper.md"], "yaml")][1]
    assert Published(**published["advanced"]["published"]) == Published()


COMMANDS = [
    line.partition("  #")[0]
    for text in [*TEXTS.values(), TRL]
    for block in blocks(text, "sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("pact-plugin ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_those_of_the_command_line(line):
    command: Any = get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_messages_are_those_of_the_code():
    messages = re.findall(r"^\| `(.+?)` \|", TEXTS["troubleshooting.md"], re.MULTILINE)
    assert len(messages) >= 50
    texts = texts_of_the_code()
    assert [message for message in messages if message.lower() not in texts] == []


# --- the site ---


def test_every_page_stands_in_llms_txt():
    assert list(docs_site.unlisted()) == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert [page for page in docs_site.pages().values() if f'= "{page}"' not in navigation] == []


@pytest.mark.parametrize(
    ("link", "source", "page"),
    [
        ("settings.md#by-your-run", "docs/index.md", "settings.md#by-your-run"),
        ("../spec/PACT.md", "docs/how-it-works.md", "specification.md"),
        ("../../README.md#use-it", "integrations/pact_transformers/README.md", "getting-started.md#train"),
        ("../../README.md", "integrations/pact_axolotl/README.md", "index.md"),
        ("#settings", "integrations/pact_axolotl/README.md", "integrations/axolotl.md#settings"),
        ("../pact_plugin/config.py", "docs/settings.md", "files/pact_plugin/config.py.txt"),
        ("../examples", "docs/settings.md", None),
        ("missing.md", "docs/settings.md", None),
    ],
)
def test_links_of_the_repository_on_the_site(link, source, page):
    assert docs_site.destination(link, source, docs_site.pages())[0] == page


OTHERS = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "SECURITY.md")),
    *ROOT.glob("integrations/*/README.md"),
]


@pytest.mark.parametrize("path", [*PAGES, *sorted(OTHERS)], ids=str)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in names, link


@pytest.mark.parametrize("extra", sorted(extras.READMES))
def test_readmes_can_be_followed_in_an_empty_environment(extra):
    """`make extras` finds commands and files in them; running them is its task."""
    found = extras.steps(extra)
    kinds = [kind == "sh" for kind, _ in found]
    assert kinds == sorted(kinds), "files are written before commands use them"
    commands = [text for kind, text in found if kind == "sh"]
    assert commands[0].startswith(f"pip install '.[{extra},cli]'")
    assert commands[-1] in ("pact-plugin verify out", "pact-plugin verify ./out")
    files = {kind: text for kind, text in found if kind != "sh"}
    for name in files:
        compile(files[name], name, "exec")
    named = [word for line in commands for word in line.split() if word.startswith("examples/")]
    assert files or named
    assert [one for one in named if not (ROOT / one).is_file()] == []
