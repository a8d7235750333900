"""Which ssh servers are the ones they claim to be: those that the user has met before."""

from typing import Any

from conceptkit.registry.errors import BadRemote


def only_known_hosts(file: str) -> Any:
    """A policy for paramiko that accepts the host keys in a known_hosts file and refuses all others.

    Without one fsspec would believe any server. Raises ImportError where paramiko is missing.
    """
    import paramiko

    class OnlyKnown(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            try:
                known = paramiko.HostKeys(file)
            except OSError:
                known = paramiko.HostKeys()
            if not known.check(hostname, key):
                raise BadRemote(
                    f"The server {hostname} showed a host key that is not in {file}: "
                    "log in there once with ssh, and compare the key it shows."
                )

    return OnlyKnown()
