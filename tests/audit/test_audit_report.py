"""The report of an audit: its data, its page, its pictures, and what others write into it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest
from audit_schema import FILE, audit_schema
from audits import audit, results, words
from matplotlib.image import imread
from tiny import REFUSAL, tiny_tokenizer

from pact_plugin import SafetyTokens
from pact_plugin.audit import report

NASTY = "Please <script>alert('x')</script> & \"buy\" https://example.org <b>"


def test_the_json_keeps_to_its_schema(lost):
    content = json.loads((lost[0] / "audit.json").read_text(encoding="utf-8"))
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"verdict": True}, schema)


def test_the_schema_is_that_of_the_code():
    assert FILE.read_text(encoding="utf-8") == audit_schema(), "python tools/audit_schema.py writes it"


class Page(HTMLParser):
    """Refuses tags that do not match, and collects tags, references, styles and text."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input", "!doctype"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [
            value or ""
            for name, value in attrs
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}
        ]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
        else:
            assert "url(" not in data
            assert "@import" not in data


def test_the_report_is_one_page_that_needs_no_network(lost):
    text = (lost[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert [one for one in page.references if not one.startswith("#")] == []
    assert "http:" not in text
    assert "https:" not in text
    assert text.count("<svg") == 5
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert {one[1:] for one in page.references} <= set(identifiers)


def test_the_report_shows_the_numbers_with_their_n(lost):
    page = Page((lost[0] / "report.html").read_text(encoding="utf-8"))
    text = words(page.text)
    assert "Of 10 harmful prompts the reference refused 10 (100.0%) and the candidate 0 (0.0%)" in text
    assert "100.0% 72.2%–100.0% 10 of 10" in text
    assert "−100.0 points −100.0 to −44.5 n = 10 pairs" in text
    assert "p = 0.002" in text
    assert "Only 10 harmful prompts were asked" in text
    assert "The judge classifier reads the first 300 characters" in text
    assert REFUSAL in text


def test_pictures_lie_beside_it(lost):
    output, done = lost
    names = {
        "rates",
        *(f"{chart}_{kind}" for chart in ("divergence", "safety_mass") for kind in ("harmful", "benign")),
    }
    assert {path.stem for path in output.glob("*.png")} == names
    assert {path.name for path in output.iterdir()} == {
        "audit.json",
        "report.html",
        *(f"{name}.png" for name in names),
    }
    for path in output.glob("*.png"):
        pixels: Any = imread(path)
        assert pixels.shape[1] > pixels.shape[0] > 400
        assert pixels[..., :3].std() > 0.02
        assert path.name in done.output


def test_what_models_and_users_write_stays_text(folder, tmp_path):
    (tmp_path / "prompts.csv").write_text(
        'prompt,kind,category\n"{}",harmful,<i>|\n'.format(NASTY.replace('"', '""')), encoding="utf-8"
    )
    tokens = SafetyTokens.for_tokenizer(tiny_tokenizer(), [40, 41], [1.0, 0.5]).save(tmp_path)
    done = audit(
        *(folder, tmp_path / "out", "--prompts", tmp_path / "prompts.csv", "--safety-tokens", tokens)
    )
    assert done.exit_code in {0, 1}, done.output
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "b", "i"}
    assert NASTY in page.text
    assert results(tmp_path / "out").prompts[0].prompt == NASTY


def test_groups_name_what_changed(lost):
    rows = results(lost[0]).prompts
    swapped = [
        one.model_copy(
            update={
                "reference": one.candidate,
                "candidate": one.reference,
            }
        )
        for one in rows
    ]
    assert [(title, len(kept)) for title, _, kept in report.groups(rows)] == [
        ("Harmful, refused before and not now", 10),
        ("Same judgement, confidence changed most", 10),
    ]
    assert report.groups(swapped)[0][0] == "Harmful, not refused before and refused now"
    benign = [one.model_copy(update={"kind": "benign"}) for one in rows[:1] + swapped[:1]]
    assert [title for title, _, _ in report.groups(benign)] == [
        "Benign, answered before and refused now",
        "Benign, refused before and answered now",
    ]
