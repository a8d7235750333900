"""Training pictures of the world, drawn once by index and cached: picture k of a split is a function of k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from conceptkit.storybook.world import captions
from conceptkit.storybook.world.canvas import SIZE
from conceptkit.storybook.world.scene import Scene, draw_scene, draw_subject, photos, render

_SEEDS = {"base": 11, "evaluators": 12, "scored": 13, "demo": 14}
_CHUNK = 250
SESSION = 6  # photos of one subject
Job = tuple[str, int, int]  # split, first and last index


def seed_of(split: str) -> int:
    """The number that all drawings of a split begin from."""
    return _SEEDS[split]


def scene(split: str, index: int) -> Scene:
    """Scene `index` of a split; drawing pictures and writing captions both start from here."""
    return draw_scene(np.random.default_rng((_SEEDS[split], index)), split)


def caption(split: str, index: int, variant: int, empty: float = 0.1) -> str:
    """Variant `variant` of the caption of scene `index`."""
    rng = np.random.default_rng((_SEEDS[split], index, variant + 1))
    return captions.caption(scene(split, index), rng, empty)


def _draw_scenes(job: Job) -> np.ndarray:
    split, start, stop = job
    return np.stack([np.asarray(render(scene(split, k))) for k in range(start, stop)])


def _draw_sessions(job: Job) -> np.ndarray:
    split, start, stop = job
    out = []
    for k in range(start, stop):
        subject = draw_subject(np.random.default_rng((_SEEDS[split] + 100, k)), split=split)
        out.append(np.stack([np.asarray(p) for p in photos(subject, SESSION, k)]))
    return np.stack(out)


def _cached(
    path: Path, shape: tuple[int, ...], work: Callable[[Job], np.ndarray], jobs: Sequence[Job], title: str
) -> np.ndarray:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        at = 0
        with ProcessPoolExecutor() as pool:
            for block in track(pool.map(work, jobs), title, total=len(jobs)):
                out[at : at + len(block)] = block
                at += len(block)
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def pictures(split: str, count: int, cache: Path) -> np.ndarray:
    """The first `count` pictures of a split, uint8 (count, 64, 64, 3), drawn in parallel and cached."""
    jobs = [(split, k, min(k + _CHUNK, count)) for k in range(0, count, _CHUNK)]
    path = cache / f"pictures-{split}-{count}.npy"
    return _cached(path, (count, SIZE, SIZE, 3), _draw_scenes, jobs, f"drawing {split}")


def sessions(split: str, count: int, cache: Path) -> np.ndarray:
    """Six photos each of `count` subjects of a split, uint8 (count, 6, 64, 64, 3)."""
    jobs = [(split, k, min(k + 25, count)) for k in range(0, count, 25)]
    path = cache / f"sessions-{split}-{count}.npy"
    return _cached(path, (count, SESSION, SIZE, SIZE, 3), _draw_sessions, jobs, f"photographing {split}")


def weight(scene: Scene) -> float:
    """How often the UNet sees a scene: plain ones more, for shapes are learned on them soonest."""
    worth = 0.7 if scene.framing == "far" else 1.0
    worth *= 0.4 if scene.style else 1.0
    for figure in scene.figures:
        worth *= (1.0 if figure.surface == "plain" else 0.4) * (0.7 if figure.accessory else 1.0)
    return worth


def weights(split: str, count: int, cache: Path) -> np.ndarray:
    """The weights (count,) of the first scenes of a split, cached."""
    path = cache / f"weights-{split}-{count}.npy"
    if not path.exists():
        jobs = [(split, k, min(k + 1000, count)) for k in range(0, count, 1000)]
        with ProcessPoolExecutor() as pool:
            np.save(path, np.concatenate(list(pool.map(_weigh, jobs))))
    return np.load(path)


def _weigh(job: Job) -> np.ndarray:
    split, start, stop = job
    return np.array([weight(scene(split, k)) for k in range(start, stop)])


def tokenised(split: str, count: int, variants: int, tokenizer: object, cache: Path) -> np.ndarray:
    """Token ids of `variants` captions of the first `count` scenes each: int16 (count, variants, length)."""
    path = cache / f"captions-{split}-{count}x{variants}.npy"
    if not path.exists():
        jobs = [(split, k, min(k + 1000, count), variants) for k in range(0, count, 1000)]
        with ProcessPoolExecutor() as pool:
            blocks = list(track(pool.map(_write_captions, jobs), "writing captions", total=len(jobs)))
        texts = [text for block in blocks for text in block]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]  # type: ignore[operator]
        np.save(path, ids.reshape(count, variants, -1).astype(np.int16))
    return np.load(path)


def _write_captions(job: tuple[str, int, int, int]) -> list[str]:
    split, start, stop, variants = job
    out = []
    for k in range(start, stop):
        told = scene(split, k)
        for v in range(variants):
            out.append(captions.caption(told, np.random.default_rng((_SEEDS[split], k, v + 1))))
    return out
