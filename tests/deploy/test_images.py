"""deploy/Dockerfile, deploy/compose.yaml and .dockerignore against each other and against the settings there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from learner.settings import LearnerSettings
from schemas.signing_keys import PRIVATE_KEY_FILE, PUBLIC_KEY_FILE
from streams.decider_settings import DeciderSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()
KEYS = "/etc/headrace"


def _stage(name: str) -> str:
    return re.split(r"^FROM ", DOCKERFILE.partition(f"AS {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def _service(name: str) -> str:
    found = re.search(rf"^  {name}:.*\n((?:    .*\n)+)", COMPOSE, re.MULTILINE)
    assert found, name
    return found[1]


@pytest.mark.parametrize("text", [DOCKERFILE, COMPOSE], ids=["Dockerfile", "compose.yaml"])
def test_every_variable_of_ours_is_a_setting(text: str) -> None:
    known = {f"HEADRACE_{name.upper()}" for kind in (DeciderSettings, LearnerSettings) for name in kind.model_fields}
    named = set(re.findall(r"\bHEADRACE_\w+", text))
    assert named
    assert named <= known


@pytest.mark.parametrize("image", ["worker", "learner"])
def test_an_image_runs_as_a_user_whose_number_says_that_it_is_not_root(image: str) -> None:
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE)
    assert f"\nUSER {uid}:{uid}\n" in _stage(image)
    assert "user:" not in COMPOSE


def test_every_folder_that_is_written_belongs_to_the_user_so_that_a_new_volume_does() -> None:
    owned = set()
    for line in re.findall(r"install -d -o headrace -g headrace (.*)", DOCKERFILE):
        owned |= {word for word in line.split() if word.startswith("/")}
    written = set(re.findall(r"(?:STATE_DIR|CACHE_DIR)=(/\S+)", DOCKERFILE))
    mounted = set(re.findall(r'"(?:keys|decide|learn|worker-cache|learner-cache):(/[\w/]+)', COMPOSE))
    assert written | mounted == owned


def test_the_keys_that_compose_makes_are_those_that_its_processes_read() -> None:
    assert f"test -f {KEYS}/{PUBLIC_KEY_FILE} || headrace keys create --folder {KEYS}\n" in COMPOSE
    assert f"HEADRACE_PUBLIC_KEY: {KEYS}/{PUBLIC_KEY_FILE}" in _service("decide")
    assert f"HEADRACE_SIGNING_KEY: {KEYS}/{PRIVATE_KEY_FILE}" in _service("learn")
    for name, mount in (("apply", "keys:/etc/headrace"), ("decide", "keys:/etc/headrace:ro")):
        assert f'"{mount}"' in _service(name)
    assert '"keys:/etc/headrace:ro"' in _service("learn")


def test_the_brokers_data_lie_on_its_volume() -> None:
    (folder,) = re.findall(r"KAFKA_LOG_DIRS: (\S+)", COMPOSE)  # the image's default is /tmp/kraft-combined-logs
    assert f'volumes: ["kafka:{folder}"]' in _service("kafka")


def test_the_images_hold_the_locked_versions() -> None:
    assert "UV_CONSTRAINT=requirements.lock" in DOCKERFILE
    installs = re.findall(r"(?:uv )?pip install .*", DOCKERFILE)
    assert installs
    for line in installs:
        assert line.startswith("uv ") or "--require-hashes" in line


def test_what_is_copied_into_an_image_is_not_ignored() -> None:
    taken = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word.removeprefix("./").rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == taken
    assert all((ROOT / name).exists() for name in copied)
