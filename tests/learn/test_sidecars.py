"""Captions and masks that lie beside the photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conceptkit.data import captions
from conceptkit.data import masks as mask_files
from conceptkit.data import photos as pictures
from conceptkit.data.augmentation import Framing, augment
from conceptkit.errors import BadPhotos, BadRecipe
from conceptkit.learn import latent_dataset, prior_preservation
from conceptkit.learn.subject import Subject
from conceptkit.workflows.add import add
from tests.learning import draw_photos, method, outcome, values


@pytest.fixture
def place(tmp_path):
    return draw_photos(tmp_path, [0, 1, 2])


def white(path, size=(44, 36), box=(22, 0, 44, 36), ground=0):
    mask = Image.new("L", size, ground)
    mask.paste(255, box)
    mask.save(path)


def test_captions_are_read_by_the_photos_names(place):
    (place / "0.txt").write_text("a dog on\n a  bench\n")
    (place / "2.txt").write_text(" \n")
    photos = pictures.read(place)
    assert captions.captions(place, photos) == ("a dog on a bench", None, None)
    assert captions.captions([place / "0.png", place / "1.png"], photos)[0] == "a dog on a bench"
    (place / "0.txt").unlink()
    assert captions.captions(place, photos) == ()
    (place / "1.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadPhotos, match="1.txt cannot be read as a caption"):
        captions.captions(place, photos)


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        ("a dog on a bench", "a {} on a bench"),
        ("my_dog and a cat", "{} and a cat"),
        ("<my_dog> in {braces}", "{} in {{braces}}"),
        ("my_dog dog on a bench", "{} on a bench"),
        ("<my_dog> dog on a bench", "{} on a bench"),
        ("Dog, asleep", "{}, asleep"),
        ("sleeping on a bench", "a {}, sleeping on a bench"),
    ],
)
def test_the_subjects_words_find_their_place_in_a_caption(shown, caption, prompt):
    assert latent_dataset.contexts_of(Subject("my_dog", "dog", shown, captions=(caption,))) == (prompt,)


def test_a_caption_may_name_others_of_the_run(shown):
    subject = Subject("my_dog", "dog", shown, captions=("my_dog in front of moongate",))
    others = [subject, Subject("moongate", "gate", shown)]
    assert latent_dataset.contexts_of(subject, others) == ("{} in front of <moongate> gate",)
    assert latent_dataset.contexts_of(subject) == ("{} in front of moongate",)


def test_a_mask_may_be_drawn_on_nothing(shown, place):
    folder = place / "masks"
    folder.mkdir()
    mask = Image.new("LA", (44, 36), (255, 0))
    mask.paste((255, 255), (22, 0, 44, 36))
    mask.save(folder / "0.png")
    cut = mask_files.masks(folder, shown)[0]
    assert cut.getpixel((5, 5)) == 0 and cut.getpixel((40, 5)) == 255


def test_a_styles_caption_ends_with_it(shown):
    subject = Subject("inky", None, shown, "style", captions=("a dog on a bench", None))
    assert latent_dataset.contexts_of(subject) == ("a dog on a bench in the style of {}", None)


def test_captions_are_what_is_learned_with(pico, shown):
    pool = latent_dataset.latent_dataset(
        pico, shown, "<x> dog", 6, 0, captions=("a {} on a bench", None, "the {}")
    )
    assert any(text.endswith("<x> dog on a bench") for text in pool.prompts)
    assert any(text.startswith("the ") for text in pool.prompts) and "{}" not in "".join(pool.prompts)
    recipe = method("textual-inversion")
    told, plain = (outcome(pico, shown, recipe, captions=c).whole for c in (("a dog asleep",) * 3, ()))
    assert not torch.equal(values(told), values(plain))


def test_masks_move_with_the_photos():
    """A photo that is its own mask: wherever it is light, the mask is one."""
    photo = Image.new("RGB", (64, 64))
    photo.paste((255, 255, 255), (0, 0, 32, 64))
    for seed in range(12):
        view = augment(photo, 16, np.random.default_rng(seed), 2, framing=Framing())
        cut = latent_dataset._masked(view, photo.convert("L"), photo, np.random.default_rng(seed), Framing())
        light = (view.pixels[0].reshape(8, 2, 8, 2).mean((1, 3)) >= 0) * view.mask
        assert np.abs(cut.mask - light).mean() < 0.05 and (cut.mask <= view.mask).all()


def test_only_what_is_masked_counts(pico, shown, place):
    folder = place / "masks"
    folder.mkdir()
    for name in "012":
        white(folder / f"{name}.png")
    cut = mask_files.masks(folder, shown)
    pool, whole = (
        latent_dataset.latent_dataset(pico, shown, "<x> dog", 12, 0, masks=cut),
        latent_dataset.latent_dataset(pico, shown, "<x> dog", 12, 0),
    )
    assert torch.equal(pool.latents, whole.latents) and pool.prompts == whole.prompts
    assert 0 < pool.masks.sum() < 0.8 * whole.masks.sum()
    recipe = method("textual-inversion")
    assert not torch.equal(*(values(outcome(pico, shown, recipe, masks=m).whole) for m in (cut, ())))


def test_what_is_judged_is_masked_too(pico, shown):
    mask = Image.new("L", shown.pictures[0].size, 0)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    one = replace(shown, pictures=shown.pictures[:1], names=shown.names[:1])
    whole, cut = (latent_dataset.still_dataset(pico, one, "<x> dog", masks=masks) for masks in ((), (mask,)))
    assert torch.equal(whole.latents, cut.latents) and bool(whole.masks.all())
    half = cut.masks.shape[2] // 2
    assert bool(cut.masks[:, :, : half - 1].all()) and not cut.masks[:, :, half + 1 :].any()


def test_masks_that_do_not_fit(shown, place):
    folder = place / "masks"
    with pytest.raises(BadPhotos, match="is no folder"):
        mask_files.masks(folder, shown)
    folder.mkdir()
    with pytest.raises(BadPhotos, match="a mask for none of the photos"):
        mask_files.masks(folder, shown)
    white(folder / "1.png", size=(44, 30))
    with pytest.raises(BadPhotos, match=r"44 x 30 pixels and its photo 1.png 44 x 36"):
        mask_files.masks(folder, shown)
    white(folder / "1.png", box=(0, 0, 0, 0))
    with pytest.raises(BadPhotos, match="black all over"):
        mask_files.masks(folder, shown)
    white(folder / "1.png")
    assert [mask is not None for mask in mask_files.masks(folder, shown)] == [False, True, False]
    assert mask_files.masks(None, shown) == ()


def test_the_users_own_pictures_of_the_class(pico, folder, place, registry, monkeypatch):
    monkeypatch.setattr(prior_preservation, "of_class", lambda *a: pytest.fail("the user has given pictures"))
    (place / "0.txt").write_text("a dog {asleep}")
    shown = pictures.read(place)
    prior = prior_preservation.of_photos(pico, shown, "dog", captions.captions(place, shown))
    assert prior.latents.shape == (3, 4, 8, 8)
    assert prior.prompts == ("a dog {asleep}", "photo of a dog", "photo of a dog")
    without = {"prior_weight": 0.0}
    learned = add("my_dog", folder, base=pico, registry=registry, prior_photos=place, changes=without)
    assert learned.concept.noun == "dog"
    assert learned.concept.recipe["prior_weight"] == 1, "given pictures are not left unused"
    with pytest.raises(BadRecipe, match="learns a word alone.*leave --prior-photos out"):
        add("word", folder, base=pico, registry=registry, method="textual-inversion", prior_photos=place)
    with pytest.raises(BadRecipe, match="has no class that pictures could hold on to"):
        add("inky", folder, base=pico, registry=registry, kind="style", prior_photos=place)
