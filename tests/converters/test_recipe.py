"""Recipes: TOML and back, unknown things refused by name, settings from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from edgesdk_converters.errors import PassError, RecipeError
from edgesdk_converters.expand import Expand
from edgesdk_converters.fold import Fold
from edgesdk_converters.half import Half
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.recipe import Recipe, read_toml

RECIPE = Recipe((Fold(size_limit_bytes=1000), Expand(("Gelu", 'a "b" \\ ünï\x7f\n')), Half(headroom=2.5), Half()))


SPLIT = Recipe((Fold(),), (Half(headroom=2.5),), (Half(),), ("block/add", "ünï"))


def test_sections_for_the_parts_of_a_split_model_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(SPLIT.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == SPLIT == Recipe.from_plain(SPLIT.to_plain(), "here")
    assert [step.name for step in SPLIT.every] == ["fold", "half", "half"]
    changed = SPLIT.with_settings({"half.headroom": "3"})
    assert [step.headroom for step in changed.every[1:]] == [3.0, 3.0] and changed.split == SPLIT.split  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[head]]\npass = "half"\n', "no cut"),
        ("[split]\n", "'split' names no tensors"),
        ("[split]\nat = 'x'\n", "'split' names no tensors"),
        ("[split]\nat = ['x']\nbits = 3\n", "'split' names no tensors"),
        ("split = 3\n", "'split' names no tensors"),
    ],
)
def test_a_cut_that_is_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told):
        Recipe.load(path)


def test_a_recipe_as_toml_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == RECIPE
    assert Recipe.load(path).to_toml() == RECIPE.to_toml()
    assert "headroom" not in Recipe((Half(),)).to_toml()
    path.write_text("")
    assert Recipe.load(path) == Recipe(())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[whole]]\npass = 'nothing'", "unknown pass.* 'nothing'; known: "),
        ("[[whole]]\nheadroom = 2", r"\[\[whole\]\] table 1 names no pass"),
        ("[[whole]]\npass = 'half'\nhead = 2", "pass half: unknown name 'head'; known: headroom"),
        ("[[whole]]\npass = 'half'\nheadroom = 'two'", "pass half.headroom: got 'two', expected a number"),
        ("[[whole]]\npass = 'half'\nname = 'x'", "unknown name 'name'"),
        ("[[whole]]\npass = 3", "unknown pass"),
        ("[[heads]]\npass = 'half'", "unknown section 'heads'; known: whole, head, tail, split"),
        ("[whole]\npass = 'half'", r"write each pass as a \[\[whole\]\] table"),
        ("whole = 3", r"write each pass as a \[\[whole\]\] table"),
        ("[[whole]\n", "is not valid TOML"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_and_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        Recipe.load(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", ["0.5", "nan", "inf"])
def test_an_option_outside_its_range_is_an_edge_error(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.toml").write_text(f"[[whole]]\npass = 'half'\nheadroom = {value}")
    with pytest.raises(PassError, match="headroom is"):
        Recipe.load(tmp_path / "r.toml")


def test_files_that_cannot_be_read_are_recipe_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_toml(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_toml(tmp_path / "binary.toml")


def test_settings_reach_every_pass_of_that_name_and_no_other() -> None:
    changed = RECIPE.with_settings({"half.headroom": "8", "expand.operators": "Mish,Elu"})
    assert changed.whole == (Fold(1000), Expand(("Mish", "Elu")), Half(8.0), Half(8.0))
    assert RECIPE.whole[2] == Half(2.5)
    assert RECIPE.with_settings({}) == RECIPE


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prune.fraction", "1", "the recipe has no pass 'prune'; it has: fold, expand, half"),
        ("half.bits", "1", "pass half has no option 'bits'; known: headroom"),
        ("half", "1", "pass half has no option ''"),
        ("half.headroom", "x", "pass half.headroom: got 'x'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        RECIPE.with_settings({key: value})


def test_running_applies_the_passes_in_order_and_says_so(conv_net: onnx.ModelProto, given: Any) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    model = Model.from_proto(proto, "m")
    said: list[str] = []
    what = given(model)
    made = Recipe((Fold(), Half())).run(model, Given(what.source, what.train, said.append))
    assert [step.name for step in made.history] == ["fold", "half"]
    assert said == ["pass fold", "pass half", "reading activation ranges"]
    assert Recipe((Fold(), Half())).run(model, what).digest == made.digest
    assert Recipe(()).run(model, what) is model
