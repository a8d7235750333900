"""Parts that were drawn anew, set into what a pipeline gives."""

import torch

from conceptkit.inference.set_in import Details


def details(encode, size):
    changed = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    changed[..., :2] = True
    return Details(torch.ones(1, 3, 4, 4), changed, changed, torch.Size(size), encode)


def test_pictures_are_told_from_latents_of_the_same_height_and_width():
    """As of an autoencoder whose cells are pixels; latents are made where they are asked for."""
    asked = []

    def encode(pixels):
        asked.append(pixels)
        return torch.full((1, 4, 4, 4), 7.0)

    set_in = details(encode, (1, 4, 4, 4))
    (pixels,) = set_in.put_into((torch.zeros(1, 3, 4, 4),))
    assert not asked and torch.equal(pixels[0, :, 0], torch.tensor([[1.0, 1, 0, 0]] * 3))
    (latents,) = set_in.put_into((torch.zeros(1, 4, 4, 4),))
    assert len(asked) == 1 and torch.equal(latents[0, :, 0], torch.tensor([[7.0, 7, 0, 0]] * 4))
