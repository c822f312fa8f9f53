"""How a node reaches its SuperLink: the address, and the files that say who is who."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedpers.errors import ConfigError, line_of

ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")


@dataclass(frozen=True)
class Access:
    """How a node reaches its SuperLink, and shows who it is.

    Attributes:
        server: ``HOST:PORT`` of the SuperLink, or of a gateway before it.
        root_certificates: a file in PEM; who signed the server's certificate.
        key: the node's, elliptic, in OpenSSH's format, as ``flwr supernode register`` knows it.
        certificate, certificate_key: files in PEM for a server that asks for the client's.
    """

    server: str
    root_certificates: Path
    key: Path
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def url(self) -> str:
        """Where the calls are.

        Raises:
            ConfigError: ``server`` is no address.
        """
        if not ADDRESS.fullmatch(self.server):
            raise ConfigError("--server", self.server, "HOST:PORT")
        return f"https://{self.server}/v1/fleet"

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 with that authority alone.

        Raises:
            ConfigError: a file cannot be read, or is not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.root_certificates)
        except (OSError, ssl.SSLError) as error:
            got, takes = str(self.root_certificates), "certificates in PEM"
            raise ConfigError("--root-certificates", got, f"{takes} ({_reason(error)})") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if (self.certificate is None) != (self.certificate_key is None):
            takes = "--certificate and --certificate-key, or none of them"
            raise ConfigError("--certificate", str(self.certificate), takes)
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.certificate_key, password="")
            except (OSError, ssl.SSLError) as error:
                takes = f"a certificate in PEM and its key, without password ({_reason(error)})"
                raise ConfigError("--certificate", str(self.certificate), takes) from None
        return context

    def private_key(self) -> ec.EllipticCurvePrivateKey:
        """The node's key.

        Raises:
            ConfigError: it cannot be read, others may read it, or it is another kind of key.
        """
        cure = f"chmod 600 {self.key}"
        try:
            if self.key.stat().st_mode & 0o077:
                mode = oct(self.key.stat().st_mode & 0o777)
                raise ConfigError("--key", mode, "a file with mode 0600", cure)
            key = load_ssh_private_key(self.key.read_bytes(), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            takes = f"an elliptic key in OpenSSH's format ({_reason(error)})"
            raise ConfigError("--key", str(self.key), takes) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError("--key", type(key).__name__, "an elliptic key: `ssh-keygen -t ecdsa`")
        return key


def _reason(error: Exception) -> str:
    return line_of(error) or type(error).__name__
