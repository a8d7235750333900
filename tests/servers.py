"""Real servers on loopback for the tests of remotes: an sshd of one's own, and one that speaks S3."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
)


@dataclass
class Sshd:
    """An sshd that lets in one key; `options` are what `remote add --option` takes to reach it."""

    port: int
    options: dict[str, str]
    process: subprocess.Popen[bytes]

    def url(self, folder: Path) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{folder}"

    def stop(self) -> None:
        """End the server and the connections that it serves, as a machine that is switched off does."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(text) for text in children.read_text().split()] if children.exists() else []
        for pid in pids:
            os.kill(pid, 9)
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """A server with keys and configuration of its own in `folder`; the test is skipped where none can run."""
    pytest.importorskip("paramiko")
    server = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
    if SSHD is None or server is None:
        pytest.skip("no sshd is installed here (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a server started by root locks itself in
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    port = free_port()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}",
        f"AuthorizedKeysFile {folder / 'authorized'}",
        f"PidFile {folder / 'pid'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"PermitRootLogin {'prohibit-password' if os.geteuid() == 0 else 'no'}",
        f"Subsystem sftp {server}",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    log = (folder / "log").open("wb")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-200:]}")
        time.sleep(0.1)
    options = {"key_file": str(folder / "user"), "known_hosts": str(folder / "known")}
    running = Sshd(port, options, process)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket on a server that speaks S3: its address, and the options to reach it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"team-{os.urandom(6).hex()}"  # what such servers hold is one for the whole process
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        import boto3

        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}/concepts", {"endpoint_url": endpoint, "region": "us-east-1"}
    finally:
        running.stop()
