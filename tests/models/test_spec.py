"""Nested configs to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from dreamgym.models import MDNRNNConfig, ModelSpec
from dreamgym.models.spec import config_from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Part:
    sizes: tuple[int, ...] = (1, 2)
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    part: Part = Part()
    maybe: Part | None = None
    parts: tuple[Part, ...] = ()
    pair: tuple[int, int] | None = None
    inner: ModelSpec = field(default_factory=lambda: ModelSpec(family="mdn-rnn"))


WHOLES = [
    Whole(),
    Whole(part=Part(sizes=(), scale=0.1), maybe=Part(), pair=(3, 4)),
    Whole(parts=(Part(), Part(scale=2.0))),
    Whole(inner=ModelSpec(family="mdn-rnn", config=MDNRNNConfig(hidden=8))),
]


@pytest.mark.parametrize("config", WHOLES)
def test_nested_configs_survive_a_round_trip_through_json(config):
    written = json.loads(json.dumps(to_json(config)))
    assert config_from_json(Whole, written, "whole") == config


def test_a_spec_without_a_config_has_the_defaults_of_its_family():
    assert ModelSpec(family="mdn-rnn").config == MDNRNNConfig()


def test_values_that_cannot_be_written_are_refused():
    with pytest.raises(ValueError, match="the Python function 'to_json' cannot be written"):
        to_json({"function": to_json})
    with pytest.raises(ValueError, match="object"):
        to_json([object()])


def test_a_family_that_wraps_another_has_no_default_config():
    with pytest.raises(ValueError, match=r"no default config.*give a PessimisticConfig"):
        ModelSpec(family="pessimistic")


REFUSED = [
    ({"family": "ensemble", "config": {"member": "mdn-rnn"}}, "expected a config"),
    ({"family": "ensemble", "config": {"member": None}}, "expected a config"),
    (
        {"family": "ensemble", "config": {"member": {"family": "x", "config": {}}}},
        "unknown family 'x'",
    ),
    ({"family": "mdn-rn", "config": {}}, "did you mean 'mdn-rnn'"),
    ({"family": ["mdn-rnn"], "config": {}}, "unknown family"),
    ({"family": "mdn-rnn", "config": {"hiden": 1}}, "did you mean 'hidden'"),
    ({"family": "mdn-rnn", "config": [1]}, "give its fields by name"),
    ({"family": "mdn-rnn"}, "'family' and its 'config'"),
    ("mdn-rnn", "'family' and its 'config'"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_invalid_json_is_refused_with_a_precise_message(value, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_json(value)
