"""One subject of the storybook: its private traits."""

from __future__ import annotations

from dataclasses import dataclass

from conceptkit.storybook.world.canvas import RGB


@dataclass(frozen=True)
class Subject:
    """One individual: class noun, main colour (`hue` names it, None where no name fits), private traits."""

    noun: str
    hue: str | None
    colour: RGB
    parts: tuple[int, int, int]
    marking: str
    marking_colour: RGB
    second: RGB
    collar: RGB | None = None

    @property
    def traits(self) -> tuple[object, ...]:
        """The private tuple that splits are made by; colours coarsened to a grid of 64."""
        coarse = [
            None if c is None else tuple(v // 64 for v in c) for c in (self.marking_colour, self.second)
        ]
        return (self.noun, self.parts, self.marking, *coarse, self.collar is not None)
