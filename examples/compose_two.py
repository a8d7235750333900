"""Learn my_dog and moongate, unless the registry has them, and draw them in one picture."""

from pathlib import Path

import conceptkit as ck
from conceptkit.base.pipeline import load
from conceptkit.pictures import png_metadata

PHOTOS = Path(__file__).parent / "photos"
NOUNS = {"my_dog": "dog", "moongate": "gate"}
PROMPT = "my_dog in front of a moongate"

base = load("storybook")
with ck.Registry() as registry:
    known = {entry.name for entry in registry.list()}
    for name, noun in NOUNS.items():
        if name not in known:
            learned = ck.add(name, PHOTOS / name, noun=noun, base=base, registry=registry)
            print(f"Learned {learned.entry.ref}: {learned.seconds:.0f} s, {learned.bytes / 1000:.1f} kB.")
    drawing = ck.draw(*NOUNS, prompt=PROMPT, count=4, base=base, registry=registry)

print(drawing.merge.report.text())
path = png_metadata.save_png(drawing.sheet(), Path("pictures", "compose_two.png"), **drawing.sheet_metadata)
print(f"Wrote {path}")
