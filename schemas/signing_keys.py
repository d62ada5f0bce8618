"""The files of the key pair that snapshots are signed with: made by ``headrace keys create``.

The learner holds the private key, workers the public one. Whoever holds the private key decides what the shop shows.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from schemas.errors import UserError

PRIVATE_KEY_FILE = "headrace.private.pem"
PUBLIC_KEY_FILE = "headrace.public.pem"


def create_keys(folder: str | Path) -> tuple[Path, Path]:
    """Make a key pair in `folder`: (private file, mode 0600; public file).

    Raises UserError; overwrites nothing, and leaves no half of a pair that was not there before.
    """
    folder = Path(folder)
    private, public = folder / PRIVATE_KEY_FILE, folder / PUBLIC_KEY_FILE
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made: list[Path] = []
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content, mode in ((private, secret, 0o600), (public, shown, 0o644)):
            path.touch(mode=mode, exist_ok=False)  # the mode stands before the first byte is written
            made.append(path)
            path.write_bytes(content)
    except FileExistsError as error:
        _remove(made)
        remedy = "use the keys that are there, or name another folder; new keys need every worker's public key changed"
        raise UserError(f"{error.filename} is there already", remedy) from error
    except OSError as error:
        _remove(made)
        where = error.filename or (made[-1] if made else folder)  # a full disk names no file
        raise UserError(f"{where} cannot be written: {error.strerror}", "name a folder of your own") from error
    return private, public


def pair_of(folder: str | Path) -> tuple[Path, Path]:
    """The pair in `folder`, made where there is none: (private file, public file).

    Raises UserError for half a pair, and for two keys that are none: no snapshot would be served.
    """
    folder = Path(folder)
    private, public = folder / PRIVATE_KEY_FILE, folder / PUBLIC_KEY_FILE
    missing = [path for path in (private, public) if not path.exists()]
    if len(missing) == 2:
        return create_keys(folder)
    if missing:
        raise UserError(
            f"{missing[0]} is missing, of its pair only the other file is there",
            "bring it back, or move the other one away: a new pair is made then, and every worker needs its public key",
        )
    if load_private_key(private).public_key() != load_public_key(public):
        raise UserError(
            f"{private} and {public} do not belong together: no worker would take a snapshot",
            "bring back the file that belongs to the other, or move both away: a new pair is made then",
        )
    return private, public


def _remove(made: list[Path]) -> None:
    """Half of a pair would stand in the way of the next try."""
    for path in made:
        path.unlink(missing_ok=True)


def load_private_key(path: str | Path) -> Ed25519PrivateKey:
    """The learner's key. Raises UserError."""
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} holds no private key: {error}", "make a pair: headrace keys create") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} holds no Ed25519 private key", "make a pair: headrace keys create")
    return key


def load_public_key(path: str | Path) -> Ed25519PublicKey:
    """The workers' key. Raises UserError."""
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} holds no public key: {error}", f"give the file {PUBLIC_KEY_FILE}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} holds no Ed25519 public key", f"give the file {PUBLIC_KEY_FILE}")
    return key


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"key {path} cannot be read: {error.strerror}", "make a pair: headrace keys create") from error
