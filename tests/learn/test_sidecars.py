"""Captions and masks that lie beside the photos."""

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conceptkit.data import photos as pictures
from conceptkit.data.augmentation import Framing, augment
from conceptkit.data.masks import masks_for
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
    assert pictures.read(place).captions == ("a dog on a bench", None, None)
    assert pictures.read([place / "0.png", place / "1.png"]).captions == ("a dog on a bench", None)
    (place / "0.txt").unlink()
    assert pictures.read(place).captions == ()
    for bad in (b"\xff\xfe\xff", b"a\0b\0", b"\xfe\xff\xd8"):
        (place / "1.txt").write_bytes(bad)
        with pytest.raises(BadPhotos, match="1.txt cannot be read as a caption"):
            pictures.read(place)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("0.TXT", "a café\n".encode()),
        ("0.Txt", "\ufeffa café".encode()),
        ("0.txt", "a café".encode("utf-16")),
        ("0.txt", b"\xfe\xff" + "a caf\xe9".encode("utf-16-be")),
        ("0.txt", "a café".encode("utf-32")),
        ("0.txt", b"\0\0\xfe\xff" + "a café".encode("utf-32-be")),
        ("0.txt", "a café".encode("latin-1")),
        ("0.txt", "a\r\n\tcafé\r\n".encode()),
        ("0.txt", "a\x07\x1bcafé\x0c".encode()),
    ],
)
def test_a_caption_is_read_however_it_was_written(place, name, data):
    (place / name).write_bytes(data)
    assert pictures.read(place).captions == ("a café", None, None)


def test_quotes_and_dashes_of_windows_are_read(place):
    (place / "0.txt").write_bytes("my dog’s “den” – small".encode("cp1252"))
    assert pictures.read(place).captions[0] == "my dog’s “den” – small"
    (place / "0.txt").write_bytes(b"caf\xe9\x9d")
    assert pictures.read(place).captions[0] == "café"


def test_accents_of_names_may_be_composed_or_not(place):
    """One system writes them in one letter, another in two; the files belong together all the same."""
    (place / "0.png").rename(place / unicodedata.normalize("NFD", "café.png"))
    (place / unicodedata.normalize("NFC", "café.txt")).write_text("a photo")
    assert "a photo" in pictures.read(place).captions


def test_a_mask_of_two_photos_is_told(tmp_path):
    for folder in ("one", "two", "masks"):
        (tmp_path / folder).mkdir()
        draw_photos(tmp_path / folder, [1 if folder != "two" else 2])
    (tmp_path / "two/2.png").rename(tmp_path / "two/1.png")
    with pytest.raises(BadPhotos, match="1.png is of 2 photos of that name; rename all but one"):
        pictures.read([tmp_path / "one", tmp_path / "two"], masks=tmp_path / "masks")


def test_a_photo_has_its_own_caption_and_no_other(tmp_path):
    """Photos of one name in two folders, one of them not asked for."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, seeds in ((one, [1, 2]), (two, [3])):
        folder.mkdir()
        draw_photos(folder, seeds)
    (two / "3.png").rename(two / "2.png")
    (one / "2.txt").write_text("a photo that nobody asked for")
    given = [one / "1.png", two / "2.png"]
    assert pictures.read(given).captions == ()
    (two / "2.txt").write_text("my own words")
    assert pictures.read(given).captions == (None, "my own words")
    both = pictures.read([one / "2.png", two / "2.png"])
    assert set(both.captions) == {"a photo that nobody asked for", "my own words"}
    again = pictures.read([two / "2.png", one / "2.png"])
    assert again.captions == both.captions and again.digest == both.digest


def test_a_photo_set_carries_what_lies_beside_it(place):
    folder = place / "masks"
    folder.mkdir()
    white(folder / "1.png")
    (place / "2.txt").write_text("my_dog asleep")
    shown = pictures.read(place, folder)
    assert [mask is not None for mask in shown.masks] == [False, True, False] and shown.folder == place
    last = shown.part(2)
    assert (last.names, last.captions, len(last.masks)) == (("2.png",), ("my_dog asleep",), 1)


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
    assert latent_dataset.contexts_of(Subject("my_dog", "dog", replace(shown, captions=(caption,)))) == (
        prompt,
    )


def test_a_caption_may_name_others_of_the_run(shown):
    subject = Subject("my_dog", "dog", replace(shown, captions=("my_dog in front of moongate",)))
    others = [subject, Subject("moongate", "gate", shown)]
    assert latent_dataset.contexts_of(subject, others) == ("{} in front of <moongate> gate",)
    assert latent_dataset.contexts_of(subject) == ("{} in front of moongate",)


def test_a_mask_may_be_drawn_on_nothing(shown, place):
    folder = place / "masks"
    folder.mkdir()
    mask = Image.new("LA", (44, 36), (255, 0))
    mask.paste((255, 255), (22, 0, 44, 36))
    mask.save(folder / "0.png")
    cut = masks_for(folder, shown.names, shown.pictures)[0]
    assert cut.getpixel((5, 5)) == 0 and cut.getpixel((40, 5)) == 255


def test_a_styles_caption_ends_with_it(shown):
    subject = Subject("inky", None, replace(shown, captions=("a dog on a bench", None)), "style")
    assert latent_dataset.contexts_of(subject) == ("a dog on a bench in the style of {}", None)


def test_captions_are_what_is_learned_with(pico, shown):
    pool = latent_dataset.latent_dataset(
        pico, shown, "<x> dog", 6, 0, contexts=("a {} on a bench", None, "the {}")
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
    cut = masks_for(folder, shown.names, shown.pictures)
    pool, whole = (
        latent_dataset.latent_dataset(pico, replace(shown, masks=cut), "<x> dog", 12, 0),
        latent_dataset.latent_dataset(pico, shown, "<x> dog", 12, 0),
    )
    assert torch.equal(pool.latents, whole.latents) and pool.prompts == whole.prompts
    assert 0 < pool.masks.sum() < 0.8 * whole.masks.sum()
    recipe = method("textual-inversion")
    assert not torch.equal(*(values(outcome(pico, shown, recipe, masks=m).whole) for m in (cut, ())))


def test_what_is_judged_is_masked_too(pico, shown):
    mask = Image.new("L", shown.pictures[0].size, 0)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    one = shown.part(0, 1)
    whole, cut = (latent_dataset.still_dataset(pico, replace(one, masks=m), "<x> dog") for m in ((), (mask,)))
    assert torch.equal(whole.latents, cut.latents) and bool(whole.masks.all())
    half = cut.masks.shape[2] // 2
    assert bool(cut.masks[:, :, : half - 1].all()) and not cut.masks[:, :, half + 1 :].any()


def test_masks_that_do_not_fit(shown, place):
    folder = place / "masks"
    with pytest.raises(BadPhotos, match="is no folder"):
        masks_for(folder, shown.names, shown.pictures)
    folder.mkdir()
    with pytest.raises(BadPhotos, match="a mask for none of the photos"):
        masks_for(folder, shown.names, shown.pictures)
    white(folder / "1.png", size=(44, 30))
    with pytest.raises(BadPhotos, match=r"44 x 30 pixels and its photo 1.png 44 x 36"):
        masks_for(folder, shown.names, shown.pictures)
    white(folder / "1.png", box=(0, 0, 0, 0))
    with pytest.raises(BadPhotos, match="black all over"):
        masks_for(folder, shown.names, shown.pictures)
    white(folder / "1.png")
    assert [mask is not None for mask in masks_for(folder, shown.names, shown.pictures)] == [
        False,
        True,
        False,
    ]
    assert masks_for(None, shown.names, shown.pictures) == ()


def test_the_users_own_pictures_of_the_class(pico, folder, place, registry, monkeypatch):
    monkeypatch.setattr(prior_preservation, "of_class", lambda *a: pytest.fail("the user has given pictures"))
    (place / "0.txt").write_text("a dog {asleep}")
    shown = pictures.read(place)
    prior = prior_preservation.of_photos(pico, shown, "dog")
    assert prior.latents.shape == (3, 4, 8, 8)
    assert prior.prompts == ("a dog {asleep}", "photo of a dog", "photo of a dog")
    without = {"prior_loss_weight": 0.0}
    learned = add("my_dog", folder, base=pico, registry=registry, class_images=place, changes=without)
    assert learned.concept.noun == "dog"
    assert learned.concept.recipe["prior_loss_weight"] == 1, "given pictures are not left unused"
    with pytest.raises(BadRecipe, match="learns a word alone.*leave --class-images out"):
        add("word", folder, base=pico, registry=registry, method="textual-inversion", class_images=place)
    with pytest.raises(BadRecipe, match="has no class that pictures could hold on to"):
        add("inky", folder, base=pico, registry=registry, kind="style", class_images=place)
