"""Progress bars on stderr, for anything that takes over a second."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tick(Protocol):
    """What a long call reports to: `done` of `total` steps, and what it is doing."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


@contextmanager
def bar(title: str, stages: bool = False) -> Iterator[Tick]:
    """A bar named `title` that vanishes when the block ends, also when it ends badly.

    stages: where there is no terminal to draw it on, a line says what is begun.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # a piped stdout must get its lines, whatever the terminal shows
    ) as progress:
        task, begun = progress.add_task(title, total=None), [""]

        def tick(done: int, total: int, text: str = "") -> None:
            if stages and progress.disable and text != begun[0]:
                begun[0] = text
                console.print(f"{title}: {text}")
            progress.update(task, completed=done, total=total, description=text or title)

        yield tick
