"""Other packages add rows to conceptkit's tables, by a call or by an entry point."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from conceptkit import extension_table, storybook
from conceptkit.base.families import FAMILIES, family_of
from conceptkit.errors import ConceptError
from conceptkit.extension_table import ExtensionTable


@pytest.fixture
def points(monkeypatch):
    """Entry points by name; their values are put into a module of that name."""
    found: dict[str, object] = {}

    def entry_points(*, group):
        assert group == "conceptkit.colours"
        module = ModuleType("other_package")
        vars(module).update(found)
        monkeypatch.setitem(sys.modules, "other_package", module)
        return [EntryPoint(name, f"other_package:{name}", group) for name in found]

    monkeypatch.setattr(extension_table, "entry_points", entry_points)
    return found


def table() -> ExtensionTable[str]:
    return ExtensionTable("colour", "conceptkit.colours")


def test_rows_come_from_calls_and_from_entry_points(points):
    points["teal"] = "#008080"
    colours = table()
    assert colours.register("red", "#ff0000") == "#ff0000"
    assert colours["red"] == "#ff0000" and colours._waiting is None, "what is known asks no other package"
    assert colours["teal"] == "#008080" and list(colours) == ["red", "teal"] and len(colours) == 2
    assert "blue" not in colours and colours.get("blue") is None
    with pytest.raises(ConceptError, match="no colour 'blue'; choose one of red, teal"):
        colours.find("blue")


def test_a_module_registers_its_rows_itself(points):
    colours = table()
    points["more"] = module = ModuleType("more")
    colours.register("teal", "#008080")
    assert list(colours) == ["teal"] and module not in colours.values()


def test_two_rows_of_one_name_are_an_error(points):
    points["red"] = "#ee0000"
    colours = table()
    colours.register("red", "#ff0000")
    colours.register("red", "#ff0000")
    with pytest.raises(ConceptError, match="two colours called 'red'"):
        list(colours)


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch):
    broken = EntryPoint("teal", "no_such_package:TEAL", "conceptkit.colours")
    monkeypatch.setattr(extension_table, "entry_points", lambda *, group: [broken])
    with pytest.raises(ConceptError, match="The colour 'teal' of another package cannot be loaded"):
        table()["teal"]


def test_the_family_of_a_base():
    assert family_of("storybook").class_nouns == storybook.nouns()
    assert str(family_of("storybook").weights) == storybook.path()
    assert family_of("someone/model") is family_of("./folder") is FAMILIES["stable-diffusion"]
    assert family_of("stable-diffusion") is FAMILIES["stable-diffusion"]
    assert all(family.captions.is_file() for family in FAMILIES.values())
