"""Certificates and a password for `headrace broker start --secure`: SASL/SCRAM over TLS on the loopback.

For trying a secured cluster at home. The authority is made on the spot and its private key thrown away.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

USER = "headrace"
MECHANISM = "SCRAM-SHA-512"
VALID_DAYS = 365


@dataclass(frozen=True, slots=True)
class Security:
    """What broker and clients need to trust each other."""

    authority_file: str
    """PEM file with the authority's certificate, for clients."""
    server_file: str
    """PEM file with the server's key and certificate chain, for the broker."""
    password: str

    def client_options(self) -> dict[str, str]:
        """librdkafka settings of a client."""
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": self.authority_file,
            "sasl.mechanism": MECHANISM,
            "sasl.username": USER,
            "sasl.password": self.password,
        }

    def broker_settings(self) -> dict[str, str]:
        """Lines of server.properties."""
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return {
            "sasl.enabled.mechanisms": MECHANISM,
            f"listener.name.client.{MECHANISM.lower()}.sasl.jaas.config": login,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.server_file,
        }

    def format_arguments(self) -> list[str]:
        """Arguments of StorageTool that create the user."""
        return ["--add-scram", f"{MECHANISM}=[name={USER},password={self.password}]"]


def create(folder: Path) -> Security:
    """Make authority, server certificate and password in `folder`, or read back the earlier ones."""
    kept = folder / "security.json"
    if kept.exists():
        return Security(**json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("headrace development authority", authority_key, None, authority_key)
    server = _certificate("localhost", server_key, authority, authority_key)
    pem = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "authority.pem").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(pem + server.public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM))
    made = Security(
        authority_file=str((folder / "authority.pem").resolve()),
        server_file=str((folder / "server.pem").resolve()),
        password=secrets.token_urlsafe(24),
    )
    kept.touch(mode=0o600)
    kept.write_text(json.dumps(asdict(made), indent=1))
    (folder / "server.pem").chmod(0o600)
    return made


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate for `name`; an authority when `issuer` is None, else valid for the loopback."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
