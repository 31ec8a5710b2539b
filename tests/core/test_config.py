"""Settings: defaults, refusals that name the key, the value and the remedy."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pact_plugin import PactConfig
from pact_plugin.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"wieght": 1.0}, ["wieght", "1.0", "Did you mean `weight`"]),
        ({"colour": 1}, ["colour", "Valid keys", "safety_tokens"]),
        ({"weight": -1}, ["weight", "-1", "greater than or equal to 0"]),
        ({"weight": math.nan}, ["weight", "nan", "finite"]),
        ({"weight": math.inf}, ["weight", "inf", "finite"]),
        ({"objective": "kl"}, ["objective", "kl", "confidence"]),
        ({"objective": "published", "published": {"top_p": 2}}, ["published.top_p", "2"]),
        (
            {"objective": "published", "published": {"toppp": 0.5}},
            ["published.toppp", "Did you mean `top_p`"],
        ),
        ({"objective": "published", "easing": True}, ["easing", "confidence"]),
        ({"published": {"top_p": 0.5}}, ["published", "objective: published"]),
        ({"anchors": -1}, ["anchors", "-1"]),
        ({"anchors": 2, "objective": "published"}, ["anchors", "2", "objective: confidence"]),
        ({"anchor_prompts": "harmful", "anchors": 0}, ["anchor_prompts", "harmful", "Set `anchors` to 1"]),
        ({"anchor_tokens": 4, "anchors": 0}, ["anchor_tokens", "4", "Set `anchors` to 1"]),
        ({"anchor_tokens": 0}, ["anchor_tokens", "0"]),
        ({"anchor_ratio": 0}, ["anchor_ratio", "0"]),
        ({"anchor_ratio": 2, "anchors": 0}, ["anchor_ratio", "2", "Set `anchors` to 1"]),
        ({"anchor_ratio": 2, "anchor_prompts": "benign"}, ["anchor_ratio", "`anchor_prompts: both`"]),
        (
            {"anchor_prompts": "harmful", "objective": "published"},
            ["anchor_prompts", "objective: confidence"],
        ),
        ({"reference": ""}, ["reference"]),
        ({"chunk_size": 0}, ["chunk_size", "0"]),
        ({"first_n": 0}, ["first_n", "0", "greater than or equal to 1", "'all'"]),
        ({"first_n": "every"}, ["first_n", "every", "valid integer", "'all'"]),
        ({"first_n": True}, ["first_n", "True", "neither true nor false"]),
        ({"anchors": True}, ["anchors", "True", "neither true nor false"]),
        ({"weight": False}, ["weight", "False", "neither true nor false"]),
        (
            {"objective": "published", "published": {"alpha": True}},
            ["published.alpha", "neither true nor false"],
        ),
        ({"safety_tokens": 3}, ["safety_tokens", "3"]),
    ],
)
def test_bad_settings_name_key_value_and_remedy(settings, words):
    with pytest.raises(ConfigError) as caught:
        PactConfig(**settings)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.remedy


def test_what_a_pipeline_may_hand_over():
    assert PactConfig.of(True) == PactConfig()
    assert PactConfig.of({"weight": 3}).weight == 3
    config = PactConfig(weight=3)
    assert PactConfig.of(config) is config
    for wrong in (False, None, 2, "true"):
        with pytest.raises(ConfigError, match="not a configuration"):
            PactConfig.of(wrong)


def test_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PactConfig().weight = 3


def test_easing_yields_only_under_a_confidence_constraint():
    assert PactConfig().eases
    assert not PactConfig(easing=False).eases
    assert not PactConfig(weight=0).eases
    assert not PactConfig(objective="published").eases


def test_anchors_only_under_a_confidence_constraint():
    assert PactConfig(anchors=3).anchor_count == 3
    assert PactConfig(anchors=3, anchor_prompts="own.jsonl").summary()["anchor_prompts"] == "own.jsonl"
    assert (
        PactConfig(anchors=3, weight=0).anchor_count
        == PactConfig(anchors=3, weight=0).summary()["anchors"]
        == 0
    )
    assert PactConfig().anchor_count == 8
    assert PactConfig(anchors=0).anchor_count == PactConfig(objective="published").anchor_count == 0


@pytest.mark.parametrize(
    ("settings", "hold"),
    [
        ({}, "anchors"),
        ({"anchors": 2}, "anchors"),
        ({"anchors": 0}, "all"),
        ({"objective": "published"}, "all"),
        ({"hold": "all"}, "all"),
        ({"hold": "anchors"}, "anchors"),
    ],
)
def test_anchors_are_held_alone_where_there_are_any(settings, hold):
    config = PactConfig(**settings)
    assert config.summary()["hold"] == hold
    assert config.holds_data(config.anchor_count > 0) == (hold == "all")
    assert config.holds_data(False) == (settings.get("hold") != "anchors")


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, 16),
        ({"hold": "all"}, 16),
        ({"anchors": 0}, 16),
        ({"objective": "published"}, None),
        ({"objective": "published", "first_n": 4}, 4),
        ({"first_n": 64}, 64),
        ({"first_n": "all"}, None),
    ],
)
def test_the_first_tokens_of_each_response_unless_all_are_asked_for(settings, first):
    config = PactConfig(**settings)
    assert config.first_tokens == first
    assert config.summary()["first_n"] == (first or "all")
