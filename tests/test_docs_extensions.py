"""What the site makes of this project's docstrings."""

import sys
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe", reason="the site is built with the extra `docs`")

EXTENSIONS = Path(__file__).parents[1] / "docs" / "extensions"
MODULE = '''
def add(name, photos, rank=0, seed=0, more=None):
    """Learn a subject.

    Without a `name` there is none.
    photos: a folder. rank, seed: of the delta; other: is no parameter.
        It goes on.
    more: words, over
    two lines.

    Raises BadName.
    """


class Recipe:
    """How.

    steps: of it. Raises nothing.
    """

    steps: int = 1
'''


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(EXTENSIONS))
    try:
        from docstring_arguments import DocstringArguments
    finally:
        sys.path.remove(str(EXTENSIONS))
    extensions = griffe.load_extensions(DocstringArguments())
    with griffe.temporary_visited_module(MODULE, extensions=extensions) as found:
        yield found


def described(thing) -> tuple[dict[str, str], list[str]]:
    """The arguments, and the texts around them."""
    sections = thing.docstring.parse("google")
    arguments = {
        item.name: " ".join(item.description.split())
        for section in sections
        if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)
        for item in section.value
    }
    texts = [s.value for s in sections if s.kind is griffe.DocstringSectionKind.text]
    return arguments, texts


def test_arguments_become_a_list(module):
    arguments, texts = described(module["add"])
    assert arguments == {
        "photos": "a folder.",
        "seed": "see `rank`.",
        "rank": "of the delta; other: is no parameter. It goes on.",
        "more": "words, over two lines.",
    }
    assert texts == ["Learn a subject.\n\nWithout a `name` there is none.", "Raises BadName."]


def test_fields_of_a_class_do_too(module):
    arguments, _ = described(module["Recipe"])
    assert arguments == {"steps": "of it. Raises nothing."}
