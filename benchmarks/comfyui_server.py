"""A running ComfyUI: started from a checkout, spoken to over its HTTP interface, stopped again."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load
from torch import Tensor

Graph = dict[str, dict[str, Any]]
"""Nodes as the interface takes them: id -> {"class_type", "inputs"}; a link is [id, output]."""
START_S, DRAW_S = 300, 600
UNMATCHED = re.compile(r"lora key not loaded|NOT LOADED|does not exist, ignoring|will be ignored|ERROR lora")
"""What its log says where a part of a file was passed over."""
CONTROL = "control_after_generate"


@dataclass(frozen=True)
class Outcome:
    """What one prompt came to.

    latents: (1, 4, h, w) of its SaveLatent node. images: PNG files of its SaveImage nodes. error: the
    exception's sentence, or "". unmatched: lines of the log that say that something was passed over.
    """

    latents: Tensor | None
    images: list[bytes]
    error: str
    unmatched: list[str]


class Server:
    """`with Server(...) as server:`; the process ends with the block.

    checkout: ComfyUI's folder. python: an interpreter that has what ComfyUI needs. folder: where its models
    and outputs are. environment: more variables, such as where conceptkit is.
    """

    def __init__(
        self,
        checkout: Path,
        python: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.log = folder / "comfyui.log"
        self._command = [python, str(checkout / "main.py"), "--cpu", "--force-fp32", "--fp32-text-enc"]
        self._command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder)]
        self._command += ["--disable-auto-launch", *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        """Started, and answering."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.version = self.get("/system_stats")["system"]["comfyui_version"]
                return self
            except OSError:
                time.sleep(0.5)
        self.__exit__(None, None, None)
        raise RuntimeError(f"ComfyUI did not start; its log ends: {self.log.read_text()[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stopped."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def get(self, path: str) -> Any:
        """What the interface answers to a GET."""
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.loads(answer.read())

    def memory_mb(self) -> float:
        """Of its process that is no page of a file."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024

    def run(self, graph: Graph) -> Outcome:
        """Queue a prompt and wait for it."""
        seen = self.log.stat().st_size
        body = json.dumps({"prompt": graph}).encode()
        asked = urllib.request.Request(f"{self.address}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                number = json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as refused:
            return Outcome(None, [], _refusal(json.loads(refused.read())), [])
        end = time.monotonic() + DRAW_S
        while not (done := self.get(f"/history/{number}").get(number)):
            if time.monotonic() > end:
                raise RuntimeError(f"ComfyUI did not answer in {DRAW_S} s")
            time.sleep(0.1)
        error = next(
            (
                told["exception_message"]
                for kind, told in done["status"]["messages"]
                if kind == "execution_error"
            ),
            "",
        )
        files = [file for out in done["outputs"].values() for kind in out.values() for file in kind]
        latents = [load(self._file(f))["latent_tensor"] for f in files if f["filename"].endswith(".latent")]
        images = [self._file(f) for f in files if f["filename"].endswith(".png")]
        log = self.log.read_bytes()[seen:].decode(errors="replace").splitlines()
        return Outcome(
            latents[0] if latents else None, images, error, [line for line in log if UNMATCHED.search(line)]
        )

    def _file(self, place: Mapping[str, str]) -> bytes:
        asked = f"{self.address}/view?{urllib.parse.urlencode(place)}"
        with urllib.request.urlopen(asked, timeout=60) as answer:
            content: bytes = answer.read()
        return content


def _refusal(answer: Mapping[str, Any]) -> str:
    """What validation says, of the prompt and of each node."""
    found = [answer["error"]["message"]]
    for node in answer.get("node_errors", {}).values():
        found += [f"{one['message']}: {one['details']}" for one in node["errors"]]
    return "; ".join(found)


def as_graph(workflow: Mapping[str, Any], kinds: Mapping[str, Any]) -> Graph:
    """A saved workflow as the interface takes it; kinds: what `/object_info` answers.

    As the page in the browser does it: fields take the saved values in turn, and a seed has one value more.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: Graph = {}
    for node in workflow["nodes"]:
        linked = {one["name"]: links[one["link"]] for one in node.get("inputs", ()) if one["link"]}
        values, inputs = iter(node.get("widgets_values", ())), dict[str, Any](linked)
        asked = kinds[node["type"]]["input"]
        for name, field in {**asked.get("required", {}), **asked.get("optional", {})}.items():
            if name in linked or not _has_widget(field):
                continue
            inputs[name] = next(values)
            if len(field) > 1 and field[1].get(CONTROL):
                next(values)
        if left := list(values):
            raise ValueError(f"{node['type']} has no field for {left}")
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def _has_widget(field: Sequence[Any]) -> bool:
    return isinstance(field[0], list) or field[0] in ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
