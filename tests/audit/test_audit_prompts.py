"""Prompts from the package, files and data sets, by kind and column; held-out tasks."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from pact_transformers.prompt_rows import prompt_rows

from pact_plugin.audit.compare import compare
from pact_plugin.audit.measures import JudgedAnswer
from pact_plugin.cli.audit_inputs import prompt_set
from pact_plugin.data import prompts
from pact_plugin.data.heldout import HeldOut, load_task
from pact_plugin.data.prompt_files import load_file
from pact_plugin.data.prompts import Prompt
from pact_plugin.errors import ConfigError


def test_fewer_prompts_are_spread_over_the_whole_set():
    found = prompts.bundled()
    assert found.limited(11).prompts[0].category != found.limited(11).prompts[1].category
    assert len(found.limited(11).prompts) == 22
    assert found.digest != found.limited(11).digest == prompts.bundled().limited(11).digest


def test_audits_ask_what_no_anchor_asks_and_both_ask_about_every_hazard():
    anchors, audits = prompts.for_pool(), prompts.for_audits()
    assert not set(anchors.prompts) & set(audits.prompts)
    assert set(anchors.prompts) | set(audits.prompts) > set(prompts.bundled().prompts)
    categories = {one.category for one in prompts.bundled().prompts}
    assert [sum(one.kind == kind for one in audits.prompts) for kind in prompts.KINDS] == [156] * 2
    counts = [sum(one.kind == kind for one in anchors.prompts) for kind in prompts.KINDS]
    assert "{} harmful and {} benign".format(*counts) in prompts.for_pool.__doc__
    assert min(counts) >= 300
    for found in (anchors, audits):
        assert {one.category for one in found.prompts if one.category} == categories
    assert not anchors.repeated


FILES = {
    "p.jsonl": '\n{"prompt": "How, then?", "kind": "harmful", "category": "x", "other": "\\ud83d\\ude00"}\n'
    '{"prompt": "Why?", "kind": "benign"}\n{"prompt": "Why? ", "kind": "benign"}\n',
    "p.csv": 'kind,prompt,category\nharmful,"How, then?",x\nbenign,Why?,\nbenign,Why?,\n',
    "p.txt": "harmful: How, then?\n\nbenign: Why?\nbenign:Why?",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_of_prompts_is_read(tmp_path, name):
    (tmp_path / name).write_text("\ufeff" + FILES[name], encoding="utf-8")
    found = load_file(tmp_path / name)
    category = None if name == "p.txt" else "x"
    assert found.prompts == (Prompt("How, then?", "harmful", category), Prompt("Why?", "benign"))
    assert found.repeated == 1
    assert found.source == str(tmp_path / name)


BAD = [
    ("p.jsonl", '{"prompt": "a", "kind": "benign"}\n{"prompt": ', "line 2 is not JSON"),
    ("p.jsonl", '\n\n["a"]', "line 3 is not a JSON object"),
    ("p.jsonl", '{"prompt": "a\\ud800", "kind": "benign"}', "line 1 holds half of a surrogate pair"),
    (
        "p.jsonl",
        '{"prompt": "a", "kind": "benign", "category": "\\udc00"}',
        "line 1 holds half of a surrogate pair",
    ),
    ("p.jsonl", '{"prompt": " ", "kind": "benign"}', "line 1 has no text `prompt`"),
    ("p.jsonl", '{"prompt": 3, "kind": "benign"}', "line 1 has no text `prompt`"),
    ("p.jsonl", '{"prompt": "a"}', "line 1 has kind None"),
    ("p.jsonl", '{"prompt": "a", "kind": "bad"}', "line 1 has kind 'bad', not `harmful` or `benign`"),
    (
        "p.jsonl",
        '{"prompt": "a", "kind": "benign"}\n{"prompt": "a", "kind": "harmful"}',
        "line 2 calls a prompt harmful that line 1 calls benign",
    ),
    ("p.csv", "prompt,type\na,benign", "line 1 names no column kind"),
    ("p.csv", 'prompt,kind\n"a\nb",benign\nc,wrong', "line 4 has kind 'wrong'"),
    ("p.csv", "prompt,kind\na,benign,more", "line 2 has more fields"),
    ("p.csv", 'prompt,kind\n"a"b,benign', "line 2 is not CSV"),
    ("p.txt", "harmful: a\nb", "line 2 begins with neither `harmful:` nor `benign:`"),
    ("p.txt", "harmful:", "line 1 has no text `prompt`"),
    ("p.txt", "\n\n", "holds no prompt"),
    ("p.xlsx", "a", "neither a .jsonl, .csv nor a .txt file"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_file_of_prompts_is_refused_by_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_file(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"harmful: caf\xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path / "latin.txt")


def test_prompts_from_a_data_set(tmp_path):
    rows = [{"prompt": "a", "kind": "harmful"}, {"prompt": "b", "kind": "benign"}]
    for split in ("train", "test"):
        Dataset.from_list(rows).to_json(tmp_path / "both" / f"{split}.jsonl")
    Dataset.from_list(rows).to_json(tmp_path / "one" / "test.jsonl")
    for name in ("one", "both:train"):
        found = prompts.from_rows(prompt_rows(str(tmp_path / name)), name, "row")
        assert [(one.prompt, one.kind) for one in found.prompts] == [("a", "harmful"), ("b", "benign")]
    for name, message in (
        ("both", "it has the splits"),
        ("both:dev", "cannot be loaded"),
        ("none", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=message):
            prompt_rows(str(tmp_path / name))


def test_a_column_and_a_kind_can_be_named(tmp_path):
    rows = [{"question": "a", "id": 1}, {"question": "b", "id": 1}, {"question": "c", "id": 2}]
    Dataset.from_list(rows).to_json(tmp_path / "data" / "test.jsonl")
    for name, text in (
        ("p.jsonl", "\n".join(map(json.dumps, rows))),
        ("p.csv", "id,question\n1,a\n1,b\n2,c\n"),
        ("p.txt", "a\nharmful: b\nc"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    given = [f"{tmp_path}/p.jsonl#question", f"{tmp_path}/p.csv#question", f"{tmp_path}/data#question"]
    for name in given:
        found = prompt_set({None: [], "harmful": [name], "benign": []})
        assert [(one.prompt, one.kind, one.request) for one in found.prompts] == [
            ("a", "harmful", "1"),
            ("b", "harmful", "1"),
            ("c", "harmful", "2"),
        ]
    lines = prompt_set({None: [], "harmful": [f"{tmp_path}/p.txt"], "benign": []})
    assert [(one.prompt, one.kind) for one in lines.prompts] == [(one, "harmful") for one in "abc"]


def test_a_file_with_a_hash_in_its_name_is_itself(tmp_path):
    (tmp_path / "a#b.txt").write_text("harmful: x", encoding="utf-8")
    assert prompt_set({None: [f"{tmp_path}/a#b.txt"]}).prompts == (Prompt("x", "harmful"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl#question", '{"prompt": "a", "label": 0}', "has no text `question`, only prompt, label"),
        ("p.csv#question", "prompt,label\na,0", "line 1 names no column question"),
        ("p.txt#question", "a", "a .txt file has no column question"),
        (
            "p.jsonl",
            '{"prompt": "a", "kind": "benign"}',
            "line 1 is benign by its own column, and was given as harmful",
        ),
        ("p.txt", "a\nbenign: b", "line 2 is benign by its own column"),
    ],
)
def test_a_column_or_kind_that_does_not_fit_is_refused(tmp_path, name, text, message):
    (tmp_path / name.partition("#")[0]).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        prompt_set({"harmful": [f"{tmp_path}/{name}"]})


def test_a_data_set_without_kinds_is_refused_by_its_row(tmp_path):
    Dataset.from_list([{"prompt": "a", "label": 0}]).to_json(tmp_path / "other" / "test.jsonl")
    with pytest.raises(ConfigError, match=r"row 1 has kind None.*--harmful or --benign"):
        prompt_set({None: [str(tmp_path / "other")]})
    with pytest.raises(ConfigError, match="row 1 has no text `text`, only prompt, label"):
        prompt_set({None: [f"{tmp_path}/other#text"]})


def test_several_files_are_one_set(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "x", "request": 1}\n{"prompt": "y", "request": 1}', encoding="utf-8"
    )
    (tmp_path / "b.jsonl").write_text('{"prompt": "z", "request": 1}\n{"prompt": "x"}', encoding="utf-8")
    (tmp_path / "c.txt").write_text("u\nv", encoding="utf-8")
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.txt"))
    found = prompt_set({"harmful": [a, b, b], "benign": [c]})
    assert [one.prompt for one in found.prompts] == ["x", "y", "z", "u", "v"]
    assert len({one.request for one in found.prompts[:3]}) == 2
    assert (found.repeated, found.source) == (3, f"{a}, {b}, {c}")
    with pytest.raises(ConfigError, match=r"b\.jsonl.*calls 'x' benign, and .*a\.jsonl harmful"):
        prompt_set({"harmful": [a], "benign": [b]})


@pytest.mark.parametrize(
    ("row", "request_"),
    [
        ({"request": ""}, None),
        ({"request": "  ", "id": 7}, "7"),
        ({"request": None, "id": 7}, "7"),
        ({"request": 0, "id": 7}, "0"),
        ({"id": None}, None),
    ],
)
def test_an_empty_field_is_no_request(row, request_):
    (found,) = prompts.from_rows([(1, {"prompt": "a", "kind": "benign", **row})], "x").prompts
    assert found.request == request_


def test_no_names_are_the_bundled_prompts():
    assert prompt_set({None: [], "harmful": [], "benign": []}) == prompts.for_audits()


def test_a_thousand_prompts_of_each_kind(tmp_path):
    for kind in ("harmful", "benign"):
        rows = [json.dumps({"text": f"{kind} {i}", "request": i // 5}) for i in range(1000)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = prompt_set({kind: [f"{tmp_path}/{kind}.jsonl#text"] for kind in ("harmful", "benign")})
    answers = [JudgedAnswer.of("refused") if i % 5 else JudgedAnswer.of("complied") for i in range(2000)]
    kept = prompts.of_kind(found.prompts, "harmful")
    same = compare(found.prompts, kept, answers, answers)
    assert (same.change.requests, same.reference.n) == (200, 1000)
    assert same.change.low < 0 < same.change.high


# --- a held-out task ---


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "answer": "b"},
        {"prompt": "a", "completion": "b", "other": 1},
        {"prompt": "a", "answer": None, "completion": "b"},
        {"prompt": "a", "answer": "b", "completion": None},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    ],
)
def test_every_format_of_tasks_is_read(tmp_path, row):
    (tmp_path / "t.jsonl").write_text(f"\n{json.dumps(row)}\n", encoding="utf-8")
    assert load_task(tmp_path / "t.jsonl") == (HeldOut(({"role": "user", "content": "a"},), "b", 2),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no item"),
        ("[]", "line 1 is not a JSON object"),
        ('{"prompt": "a"}', "line 1 has no `prompt` with an `answer`"),
        ('{"answer": "a"}', "line 1 has no `prompt` with an `answer`"),
        ('{"prompt": 3, "answer": "b"}', "line 1 has no `prompt`"),
        ('{"prompt": "a", "answer": " "}', "line 1 does not end with an answer"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "does not end with",
        ),
        ('{"messages": ["a", "b"]}', "line 1 has no"),
        ('{"messages": 5}', "line 1 has no"),
        ('{"messages": "five"}', "line 1 has no"),
        ('{"messages": {"role": "user", "content": "a"}}', "line 1 has no"),
        ('{"prompt": "a", "answer": "b\\ud800"}', "line 1 holds half of a surrogate pair"),
    ],
)
def test_a_bad_task_is_refused_by_its_line(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^task=.*{message}"):
        load_task(tmp_path / "t.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_task(tmp_path / "none.jsonl")
