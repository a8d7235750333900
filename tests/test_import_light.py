"""What has to start quickly imports nothing heavy."""

import subprocess
import sys

import pytest

import conceptkit

HEAVY = {"torch", "diffusers", "transformers", "peft", "scipy"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in result.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import conceptkit; conceptkit.Registry, conceptkit.ConceptError, dir(conceptkit)",
        "import conceptkit.registry.store",
        "from conceptkit.merging.request import ComposeRequest; ComposeRequest(('a:0.5', 'b'))",
        "from conceptkit.formats.dialects import DIALECTS; list(DIALECTS)",
        "from conceptkit.evaluate.scorer_table import SCORERS; list(SCORERS)",
        "from conceptkit.cli.main import main; main(['--help'], standalone_mode=False)",
        "from conceptkit.cli.main import main; main(['list'], standalone_mode=False)",
        "from conceptkit.cli.main import main; main(['list', '--json'], standalone_mode=False)",
    ],
)
def test_light(code):
    assert not modules_after(code) & HEAVY


def test_registry_stands_alone():
    """Of conceptkit, the registry needs nothing."""
    script = (
        "import conceptkit.registry.store, sys; print(*(n for n in sys.modules if n[:10] == 'conceptkit'))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in loaded if not name.startswith("conceptkit.registry")} == {"conceptkit"}


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        conceptkit.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(conceptkit.__all__))
def test_every_public_name_is_there(name):
    value = getattr(conceptkit, name)
    assert getattr(conceptkit, name) is value, "the module of that name must not replace it"
    if name.islower() and name not in ("learn", "storybook", "__version__"):
        assert callable(value)
    assert name in dir(conceptkit)
