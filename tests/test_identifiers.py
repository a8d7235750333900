"""Rare tokens: whole words of one token, rarest first, and none that the base has a use for."""

import json

import pytest
from click.testing import CliRunner

from conceptkit.base import pipeline, text_features
from conceptkit.base.rare_tokens import candidates, choose
from conceptkit.cli.main import main
from conceptkit.errors import BadRecipe
from tests.tiny import pico_sd, pico_sdxl

CAPTIONS = ["a red dog on the bed", "a cat", "the red car"]


@pytest.mark.parametrize("build", [pico_sd, pico_sdxl])
def test_candidates_are_one_token_in_every_tokenizer(build):
    pipe = build()
    found = candidates(pipe, CAPTIONS)
    assert {one.text for one in found} >= {"up", "far", "dog", "q"}
    for one in found:
        assert 1 <= len(one.text) <= 3 and one.text.isalpha() and 0 <= one.rarity <= 1
        for (tokenizer, _), number in zip(text_features.encoders(pipe), one.ids, strict=True):
            assert tokenizer(f"a {one.text} dog", add_special_tokens=False).input_ids[1] == number


def test_the_rarest_come_first_and_the_seen_last():
    found = candidates(pico_sd(), CAPTIONS)
    unseen = [one for one in found if not one.seen]
    assert found[: len(unseen)] == unseen
    assert [one.rarity for one in unseen] == sorted((one.rarity for one in unseen), reverse=True)
    seen = {one.text: one.seen for one in found}
    assert seen["red"] == 2 and seen["dog"] == 1 and seen["far"] == 0
    assert "hat" not in seen, "it is spelled in two tokens"


def test_a_choice_is_as_its_seed_and_never_a_word_in_use():
    pipe = pico_sd()
    picks = [choose(pipe, CAPTIONS, seed) for seed in range(30)]
    assert picks == [choose(pipe, CAPTIONS, seed) for seed in range(30)]
    assert len({pick[0].text for pick in picks}) > 3
    assert all(not pick[0].seen for pick in picks)
    three = choose(pipe, CAPTIONS, 0, 3)
    assert len({one.text for one in three}) == 3
    with pytest.raises(BadRecipe, match="rare tokens of up to 3 letters, not 999"):
        choose(pipe, CAPTIONS, 0, 999)


def test_a_choice_leaves_out_what_is_taken():
    pipe = pico_sd()
    (first,) = choose(pipe, [], 7)
    (second,) = choose(pipe, [], 7, taken=[first.text])
    assert first.text != second.text


def test_the_storybook_lists_its_own(monkeypatch):
    monkeypatch.setattr(pipeline, "load", lambda name: pipeline.of(pico_sd(), "pico"))
    shown = CliRunner().invoke(main, ["tokens", "-n", "5"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0].split() == ["TOKEN", "ID", "RARITY", "SEEN"] and len(lines) == 6
    found = json.loads(CliRunner().invoke(main, ["tokens", "-n", "5", "--json"]).output)
    assert [one["text"] for one in found] == [line.split()[0] for line in lines[1:]]
