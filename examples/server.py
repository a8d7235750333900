"""An HTTP server that draws concepts of the registry and swaps them between requests.

    python examples/server.py --base storybook --port 8000
    curl "http://127.0.0.1:8000/draw?concepts=my_dog,moongate&prompt=my_dog+and+a+moongate" -o both.png

One base stays loaded. Where one concept differs from those of the last request it is swapped; where more do,
all are attached anew.
"""

import argparse
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Lock
from urllib.parse import parse_qs, urlparse

import torch

import conceptkit as ck
from conceptkit.base.pipeline import load


class Studio:
    """A base with the concepts of the last request on it; requests are drawn one after another."""

    def __init__(self, base: str) -> None:
        self.base, self.lock = load(base), Lock()
        self.attachment: ck.Attachment | None = None
        self.names: list[str] = []

    def draw(self, names: list[str], prompt: str, seed: int, steps: int) -> bytes:
        """A PNG. Raises ConceptError."""
        with self.lock:
            self._put(names)
            generator = torch.Generator("cpu").manual_seed(seed)
            options = {"num_inference_steps": steps, "generator": generator}
            options["guidance_scale"] = self.base.family.guidance_scale
            picture = self.base.pipe(prompt, **options).images[0]
        data = BytesIO()
        picture.save(data, format="PNG")
        return data.getvalue()

    def _put(self, names: list[str]) -> None:
        if names == self.names:
            return
        differ = [i for i, pair in enumerate(zip(self.names, names, strict=False)) if pair[0] != pair[1]]
        if self.attachment and len(names) == len(self.names) and len(differ) == 1:
            self.attachment.swap(self.names[differ[0]].partition(":")[0], names[differ[0]])
        else:
            self.close()
            self.attachment = ck.attach(self.base.pipe, *names) if names else None
        self.names = names

    def close(self) -> None:
        """Take all concepts off."""
        if self.attachment:
            self.attachment.detach()
        self.attachment, self.names = None, []


class Handler(BaseHTTPRequestHandler):
    """GET /draw?concepts=a,b:0.8&prompt=...&seed=0&steps=25: a PNG, or a sentence with status 400."""

    studio: Studio

    def do_GET(self) -> None:
        """Answer one request."""
        address = urlparse(self.path)
        asked = {key: values[-1] for key, values in parse_qs(address.query).items()}
        if address.path != "/draw" or "prompt" not in asked:
            return self._answer(404, b"ask for /draw?concepts=my_dog&prompt=my_dog", "text/plain")
        names = [name for name in asked.get("concepts", "").split(",") if name]
        try:
            seed, steps = int(asked.get("seed", 0)), int(asked.get("steps", 25))
            picture = self.studio.draw(names, asked["prompt"], seed, steps)
        except (ck.ConceptError, ValueError) as error:
            return self._answer(400, str(error).encode(), "text/plain")
        return self._answer(200, picture, "image/png")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description="Draw concepts over HTTP, on this machine alone.")
    parser.add_argument("--base", default="storybook", help="storybook, a diffusers folder or a hub id")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    Handler.studio = Studio(chosen.base)
    with ThreadingHTTPServer(("127.0.0.1", chosen.port), Handler) as server, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{chosen.port}/draw?concepts=my_dog&prompt=my_dog", flush=True)
        server.serve_forever()
    Handler.studio.close()


if __name__ == "__main__":
    main()
