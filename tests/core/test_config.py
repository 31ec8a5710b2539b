"""Settings: defaults, switches, refusals that name the key, the value and the remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from loop import TOKENS
from pydantic import ValidationError

from pact_plugin import PactConfig
from pact_plugin.config import Advanced, Anchors, Easing, HoldData, Published
from pact_plugin.errors import ConfigError

PUBLISHED = {"easing": False, "anchors": False}


def published(**settings):
    return PUBLISHED | {"advanced": {"published": settings}}


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"wieght": 1.0}, "wieght", ["1.0", "Did you mean `weight`"]),
        ({"colour": 1}, "colour", ["Valid keys", "safety_tokens"]),
        ({"weight": -1}, "weight", ["-1", "greater than or equal to 0"]),
        ({"weight": math.nan}, "weight", ["nan", "finite"]),
        ({"weight": math.inf}, "weight", ["inf", "finite"]),
        ({"weight": False}, "weight", ["False", "valid number"]),
        ({"weight": "1e-4"}, "weight", ["'1e-4'", "valid number", "without quotes", "`1.0e-4`"]),
        ({"weight": "heavy"}, "weight", ["valid number", "See its description"]),
        ({"safety_tokens": 3}, "safety_tokens", ["3"]),
        ({"reference": ""}, "reference", []),
        ({"reference": True}, "reference", ["True", "valid string"]),
        # inside of blocks
        ({"easing": {"frist": 3}}, "easing.frist", ["3", "Did you mean `first`"]),
        ({"easing": {"first": 0}}, "easing.first", ["0", "greater than or equal to 1", "'all'"]),
        ({"easing": {"first": "every"}}, "easing.first", ["every", "valid integer", "'all'"]),
        ({"easing": {"first": True}}, "easing.first", ["True", "valid integer", "'all'"]),
        ({"easing": {"first": 2.0}}, "easing.first", ["2.0", "valid integer"]),
        ({"easing": {"first": "2"}}, "easing.first", ["'2'", "valid integer", "without quotes"]),
        ({"hold_data": {"first": 0}}, "hold_data.first", ["0"]),
        ({"anchors": {"per_step": 0}}, "anchors.per_step", ["0", "greater than or equal to 1"]),
        ({"anchors": {"per_step": True}}, "anchors.per_step", ["True", "valid integer"]),
        ({"anchors": {"tokens": 0}}, "anchors.tokens", ["0"]),
        ({"anchors": {"prompts": ""}}, "anchors.prompts", []),
        ({"anchors": {"colour": 1}}, "anchors.colour", ["Valid keys: per_step, prompts, tokens"]),
        ({"advanced": {"chunk_size": 0}}, "advanced.chunk_size", ["0"]),
        ({"advanced": {"top_k": 1}}, "advanced.top_k", ["1", "greater than or equal to 2"]),
        ({"advanced": {"chunksize": 9}}, "advanced.chunksize", ["Did you mean `chunk_size`"]),
        (published(top_p=2), "advanced.published.top_p", ["2"]),
        (published(toppp=0.5), "advanced.published.toppp", ["Did you mean `top_p`"]),
        (published(alpha=True), "advanced.published.alpha", ["True", "valid number"]),
        # switches
        ({"easing": 16}, "easing", ["16", "neither true, false nor a block", "`{first: 16}`"]),
        ({"anchors": 8}, "anchors", ["8", "neither true, false nor a block", "`{per_step: 8}`"]),
        ({"anchors": 0}, "anchors", ["neither true, false nor a block"]),
        ({"hold_data": "all"}, "hold_data", ["all", "`{first: all}`"]),
        ({"advanced": False}, "advanced", ["neither true nor a block", "Write `true` or a block"]),
        ({"reference": None}, "reference", ["it is empty", "remove the key"]),
        ({"advanced": {"published": "yes"}}, "advanced.published", ["yes", "`{first: all}`"]),
        # keys at the wrong level
        ({"per_step": 8}, "per_step", ["Write it below `anchors:`"]),
        ({"prompts": "both"}, "prompts", ["Write it below `anchors:`"]),
        ({"first": 8}, "first", ["Write it below `easing:`"]),
        ({"store": "folder"}, "store", ["Write it below `advanced:`"]),
        ({"chunk_size": 8}, "chunk_size", ["Write it below `advanced:`"]),
        ({"top_k": 8}, "top_k", ["Write it below `anchors:` or `advanced:`"]),
        ({"published": {}}, "published", ["Write it below `advanced:`"]),
        ({"advanced": {"temperature": 2}}, "advanced.temperature", ["Write it below `published:`"]),
        # what does not go together
        ({"easing": False, "anchors": False}, "pact", ["nothing would be constrained", "`pact: false`"]),
        ({"easing": False, "weight": 0}, "pact", ["a weight of 0 goes without anchors", "nothing would be"]),
        ({"advanced": {"published": True}}, "easing", ["published", "Set `easing: false`"]),
        ({"easing": False, "advanced": {"published": True}}, "anchors", ["Set `anchors: false`"]),
        (published() | {"hold_data": True}, "hold_data", ["Set `hold_data: false`"]),
        ({"safety_tokens": "x", "advanced": {"top_k": 9}}, "advanced.top_k", ["9", "Remove `top_k`"]),
        ({"weight": 0, "anchors": True}, "anchors", ["only measures", "weight above 0"]),
        ({"weight": 0, "anchors": {"tokens": 2}}, "anchors", ["only measures"]),
        (
            {"easing": False, "advanced": {"store": "x"}},
            "advanced.store",
            ["'x'", "nothing would be stored", "`easing: true`"],
        ),
    ],
)
def test_bad_settings_name_key_value_and_remedy(settings, key, words):
    with pytest.raises(ConfigError) as caught:
        PactConfig(**settings)
    assert caught.value.key == key
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "block", "default"),
    [("easing", Easing, True), ("anchors", Anchors, True), ("hold_data", HoldData, False)],
)
def test_switches(name, block, default):
    free = {"easing": True} if name != "easing" else {}

    def read(**settings):
        return getattr(PactConfig(**free | settings), name)

    assert read() == (block() if default else None)
    assert read(**{name: True}) == read(**{name: {}}) == read(**{name: block()}) == block()
    assert read(**{name: False}) is None
    with pytest.raises(ConfigError, match=rf"{name}.*it is empty.*Write `true`, `false`, or a block"):
        read(**{name: None})  # a key in YAML with nothing below it


def test_the_advanced_block_may_be_switched_on_but_not_off():
    assert PactConfig(advanced=True) == PactConfig(advanced={}) == PactConfig(advanced=Advanced())
    assert PactConfig(**PUBLISHED, advanced={"published": True}).advanced.published == Published()
    for off in (False, None):
        with pytest.raises(ConfigError, match="advanced"):
            PactConfig(advanced=off)


def test_what_a_pipeline_may_hand_over():
    assert PactConfig.of(True) == PactConfig() == PactConfig.of({})
    assert PactConfig.of({"weight": 3}).weight == 3
    config = PactConfig(weight=3)
    assert PactConfig.of(config) is config
    for wrong in (False, None, 2, "true"):
        with pytest.raises(ConfigError, match="not a configuration"):
            PactConfig.of(wrong)


def test_paths_become_text():
    config = PactConfig(
        safety_tokens=Path("t"), reference=Path("r"), anchors={"prompts": Path("p")}, advanced={"store": "s"}
    )
    assert (config.safety_tokens, config.reference, config.anchors.prompts) == ("t", "r", "p")
    assert PactConfig(advanced={"store": Path("s")}).advanced.store == config.advanced.store == "s"


def test_a_tilde_is_the_users_home():
    config = PactConfig(safety_tokens="~/t", anchors={"prompts": Path("~/p")}, advanced={"store": "~/s"})
    home = Path.home()
    assert (config.safety_tokens, config.anchors.prompts) == (str(home / "t"), str(home / "p"))
    assert config.advanced.store == str(home / "s")


def test_a_whole_number_stands_for_a_float():
    """YAML has `weight: 3`."""
    weight = PactConfig(weight=3).weight
    assert (weight, type(weight)) == (3.0, float)
    assert PactConfig(**published(alpha=1)).advanced.published.alpha == 1.0


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PactConfig().weight = 3
    with pytest.raises(ValidationError, match="frozen"):
        PactConfig().easing.first = 3


@pytest.mark.parametrize(
    ("settings", "eases", "has_anchors", "asks"),
    [
        ({}, True, True, True),
        ({"easing": False}, False, True, False),
        ({"anchors": False}, True, False, True),
        ({"easing": False, "hold_data": True}, False, True, True),
        ({"easing": False, "anchors": False, "hold_data": True}, False, False, True),
        ({"weight": 0}, False, False, True),
        (published(), False, False, True),
    ],
)
def test_what_a_run_does(settings, eases, has_anchors, asks):
    config = PactConfig(**settings)
    assert (config.eases, config.has_anchors, config.asks_at_responses) == (eases, has_anchors, asks)


def test_the_summary_is_plain():
    config = PactConfig(
        safety_tokens="t", weight=2, easing={"first": 4}, hold_data=True, advanced={"store": "s"}
    )
    summary = json.loads(json.dumps(config.summary()))
    assert summary["easing"] == {"first": 4}
    assert summary["hold_data"] == {"first": "all"}
    anchors = {"per_step": 8, "prompts": "both", "tokens": 16, "top_k": 64, "benign_top_k": 0}
    assert summary["anchors"] == anchors
    off = PactConfig(easing=False).summary()
    assert (off["easing"], off["hold_data"], off["advanced"]["published"]) == (False, False, None)
    assert PactConfig(safety_tokens=TOKENS).summary()["safety_tokens"] == TOKENS.digest
