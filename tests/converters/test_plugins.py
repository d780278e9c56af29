"""Names to classes, ours and those of installed packages."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from edgesdk_converters import GROUP, PASSES, find, known, plugins
from edgesdk_converters.errors import EdgeError, RecipeError
from edgesdk_converters.passes import Pass


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Announce NAME as LOCATION under the group of passes; modules may be written to the returned directory."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, location: str, source: str = "") -> None:
        module = location.partition(":")[0]
        if source:
            (tmp_path / f"{module}.py").write_text(source)
            sys.modules.pop(module, None)
        entry = EntryPoint(name, location, GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == GROUP else [])

    return make


def test_every_pass_of_ours_is_found_and_is_a_pass() -> None:
    for name in PASSES:
        cls = find(name)
        assert isinstance(cls(), Pass)
        assert cls.name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"unknown passe? 'nothing'; known: .*fold.*half"):
        find("nothing")


def test_plugins_are_found_and_listed_after_ours(announce) -> None:  # type: ignore[no-untyped-def]
    announce("mine", "my_plugin_ok:Mine", "class Mine:\n    name = 'mine'\n")
    assert known() == (*PASSES, "mine")
    assert find("mine").__name__ == "Mine"


def test_a_plugin_cannot_replace_one_of_ours(announce) -> None:  # type: ignore[no-untyped-def]
    announce("fold", "my_plugin_fold:Mine", "class Mine: pass\n")
    assert known() == tuple(PASSES)
    assert find("fold").__module__ == "edgesdk_converters.fold"


@pytest.mark.parametrize(
    "source",
    [
        "import not_a_package_at_all\n",
        "x = \n",
        "y = undefined_name\n",
        "class Other: pass\n",
        "raise RuntimeError('no')\n",
        "int('x')\n",
    ],
)
def test_a_broken_plugin_raises_only_when_asked_for(announce, source: str) -> None:  # type: ignore[no-untyped-def]
    announce("broken", "my_plugin_broken:Mine", source)
    assert "broken" in known()
    with pytest.raises(RecipeError, match="'broken' is announced as my_plugin_broken:Mine, which does not import"):
        find("broken")


def test_a_plugin_that_is_no_class_is_refused_and_edge_errors_pass_through(announce) -> None:  # type: ignore[no-untyped-def]
    announce("odd", "my_plugin_odd:thing", "thing = 3\n")
    with pytest.raises(RecipeError, match="is no class"):
        find("odd")
    announce("edge", "my_plugin_edge:T", "from edgesdk_converters.errors import ModelError\nraise ModelError('mine')\n")
    with pytest.raises(EdgeError, match="mine"):
        find("edge")
    announce("empty", ":")
    with pytest.raises(RecipeError):
        find("empty")
