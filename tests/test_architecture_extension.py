"""Another package teaches a kind of denoiser by an entry point."""

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from conceptkit import extension_table
from conceptkit.base import architectures
from conceptkit.errors import BadBase

GROUP = "conceptkit.architectures"


class OtherTransformer2DModel(nn.Module):
    """Knows text by one map, which no built-in architecture would find."""

    def __init__(self):
        super().__init__()
        self.words = nn.Linear(4, 8)
        self.rest = nn.Linear(8, 8)


class Other(architectures.Architecture):
    denoiser = "transformer"
    site = r"^words"

    def site_input(self, denoiser, hidden):
        return 2 * hidden


ARCHITECTURE = Other()


@pytest.fixture
def installed(monkeypatch):
    point = EntryPoint("OtherTransformer2DModel", f"{__name__}:ARCHITECTURE", GROUP)
    monkeypatch.setattr(extension_table, "entry_points", lambda *, group: [point] if group == GROUP else [])
    monkeypatch.setattr(architectures.ARCHITECTURES, "_rows", {})
    monkeypatch.setattr(architectures.ARCHITECTURES, "_waiting", None)


def test_an_architecture_of_another_package_is_found_by_the_class_of_its_denoiser(installed):
    model = OtherTransformer2DModel()
    found = architectures.architecture_of_denoiser(model)
    assert found.site_input(model, torch.ones(1)).item() == 2
    assert list(found.text_site(model)) == ["words"]
    architectures.check_denoiser_class("OtherTransformer2DModel")


def test_without_that_package_the_class_is_refused():
    with pytest.raises(BadBase, match=r"OtherTransformer2DModel.*add-a-base"):
        architectures.architecture_of_denoiser(OtherTransformer2DModel())
