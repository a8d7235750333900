"""Odd surroundings: encodings, homes, links, seeds, places. One sentence and exit code 2, nothing changed."""

import io
import os
import sys
import time

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from conceptkit import files
from conceptkit.cli import terminal
from conceptkit.cli.main import main
from conceptkit.cli.progress import bar
from conceptkit.cli.shared_options import free_path
from conceptkit.data import photos
from conceptkit.errors import BadPhotos, BadPrompt, BadRecipe, ConceptError
from conceptkit.pictures.png_metadata import save_png
from conceptkit.registry.catalogue.search import Filters, page
from conceptkit.registry.paths import expanded
from conceptkit.registry.store import Registry
from conceptkit.workflows.draw_request import DrawRequest
from tests.blobs import blob


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_letters_that_an_encoding_lacks_are_written_as_escapes(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert terminal.star() == "*"
    with terminal.any_text():
        print("Šárka → ★", file=out)
    out.flush()
    assert out.buffer.getvalue().decode("cp1252") == "Šárka \\u2192 \\u2605\n"
    assert out.errors == "strict"


@pytest.mark.parametrize("zone", ["Etc/GMT-14", "Etc/GMT+12"])
def test_a_day_is_one_of_the_clock_on_the_wall(zone, monkeypatch, tmp_path):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        with Registry(tmp_path) as registry:
            entry = registry.add("my_dog", blob("my_dog"), {})
            today = time.strftime("%Y-%m-%d")
            assert terminal.local(entry.created).startswith(today)
            assert page(registry, Filters(since=today, until=today)) == [entry]
            assert (
                page(registry, Filters(until="2026-01-01"))
                == page(registry, Filters(since="9000-01-01"))
                == []
            )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_home_of_nobody():
    assert expanded("~/x").is_absolute()
    with pytest.raises(ConceptError, match="a user whom this machine does not know"):
        expanded("~nobody-here/x")


def test_a_link_to_itself_among_photos(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(BadPhotos, match="loop.png does not exist"):
        photos.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"prompt": "caf\udce9"}, BadPrompt, "no text; type it in UTF-8"),
        ({"seed": 2**70}, BadRecipe, "no number of 64 bits"),
        ({"seed": 2**63 - 1, "count": 2}, BadRecipe, "no number of 64 bits"),
    ],
)
def test_what_no_pipeline_can_be_told(options, error, says):
    with pytest.raises(error, match=says):
        DrawRequest(("my_dog",), **{"prompt": "my_dog", **options})


def test_a_search_that_is_no_text_and_a_folder_that_is_closed(monkeypatch):
    result = run("search", "caf\udce9")
    assert result.exit_code == 2 and "no text; type it in UTF-8" in result.stderr

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/closed/x")

    monkeypatch.setattr("conceptkit.registry.catalogue.search.page", closed)
    result = run("list")
    assert result.exit_code == 2 and "/closed/x: Permission denied" in result.stderr


def test_new_files_and_folders_are_checked_first(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert files.check_new_file(tmp_path / "deep" / "new.png") == tmp_path / "deep" / "new.png"
    for taken in ("file", "link"):
        with pytest.raises(ConceptError, match="is there already.*--force"):
            files.check_new_file(tmp_path / taken)
    assert files.check_new_file(tmp_path / "file", force=True) == tmp_path / "file"
    with pytest.raises(ConceptError, match="is a folder; name a file in it"):
        files.check_new_file(tmp_path)
    with pytest.raises(ConceptError, match="cannot be a folder, because .*file is a file"):
        files.check_folder(tmp_path / "file" / "pictures")
    assert not (tmp_path / "deep").exists()


def test_a_folder_is_filled_and_stays_the_one_it_was(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    there = os.stat(tmp_path / "real").st_ino
    (tmp_path / "real" / "mine").write_text("kept")
    written = files.fill_folder(tmp_path / "link", {"a": b"1", "b": b"2"})
    assert [file.name for file in written] == ["a", "b"] and os.stat(tmp_path / "real").st_ino == there
    assert sorted(file.name for file in (tmp_path / "real").iterdir()) == ["a", "b", "mine"]
    with pytest.raises(ConceptError, match="already holds files: b is never overwritten"):
        files.fill_folder(tmp_path / "real", {"c": b"3", "b": b"9"})
    assert not (tmp_path / "real" / "c").exists() and (tmp_path / "real" / "b").read_bytes() == b"2"


def test_the_demo_writes_over_its_own_sheet_alone(tmp_path):
    from conceptkit.workflows import demo

    file = tmp_path / demo.SHEET
    demo._check_sheet(file)
    for content in (b"precious", b""):
        file.write_bytes(content)
        with pytest.raises(ConceptError, match="contact_sheet.png is there already.*--out"):
            demo.run(tmp_path, lambda *_: pytest.fail("began"))
        assert file.read_bytes() == content
    save_png(Image.new("RGB", (2, 2)), file, prompts=["mine"])
    with pytest.raises(ConceptError, match="no sheet of this command"):
        demo.run(tmp_path, lambda *_: None)
    save_png(Image.new("RGB", (2, 2)), file, prompts=list(demo.TOGETHER))
    demo._check_sheet(file)


def test_a_picture_does_not_replace_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "dog.png").symlink_to(tmp_path / "unplugged")
    assert free_path(tmp_path, "dog", ".png") == tmp_path / "dog-2.png"


def test_a_preview_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, format="PNG")
    with Registry() as registry:
        entry = registry.add("my_dog", blob("my_dog"), {})
        registry.set_preview(entry.name, entry.version, png.getvalue())
    (tmp_path / "p.png").write_text("precious")
    result = run("show", "my_dog", "--preview", "p.png")
    assert result.exit_code == 2 and (tmp_path / "p.png").read_text() == "precious"
    assert run("show", "my_dog", "--preview", "p.png", "--force").exit_code == 0
    assert (tmp_path / "p.png").read_bytes() == png.getvalue()


def test_without_a_terminal_each_stage_of_a_long_run_is_a_line(capsys):
    with bar("Demo", stages=True) as tick:
        for done, text in enumerate(["learning the word", "learning the word", "drawing both"]):
            tick(done, 3, text)
    with bar("Learning") as tick:
        tick(1, 2, "learning the word")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["Demo: learning the word", "Demo: drawing both"]
