"""Where a model's files are: an explicit folder, the Hub's local cache, the pinned repository, its mirrors, tried in this order.

Everything goes through huggingface_hub, which heeds HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE, goes on within a file
when a connection drops, keeps the files that are whole, and gives a file its name only then. Nothing but the paths that `choose` names is
ever fetched: JSON, safetensors and the tokenizer's two lists. No code, no pickles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fourdfy_cli.config import Models
from fourdfy_cli.diffusion.shards import missing as missing_shard
from fourdfy_cli.diffusion.table import (
    CAMERA_PROJECTION,
    CLIP_FILES,
    FP16,
    OTHERS,
    PARTS,
    ROLES,
    TEXTS,
    TINY_FILES,
    TRANSFORMER,
    WEIGHTS,
    Row,
    find,
    row,
)
from fourdfy_cli.diffusion.unreachable import nearest, refusal
from fourdfy_cli.errors import ENVIRONMENT, USAGE, FourdfyError, typed

ID = re.compile(r"[\w.-]+/[\w.-]+(@(?!.*\.\.)\w[\w./-]*)?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LOOSE = {"clip": CLIP_FILES, "tiny": TINY_FILES}  # roles whose files lie right in the folder
NEWER = "transformer/"  # what only a newer video model's folder holds
T5_TOKENIZERS = ("tokenizer.json", "spiece.model")  # the first that is there
OPTIONAL = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")


def locate(role: str, wanted: str = "", skip: tuple[str, ...] = ()) -> Path:
    """The folder with a role's files, downloaded if need be; `wanted` is a folder, an id[@revision], or "" for the table's choice. Parts
    to `skip` need not be there.

    Raises FourdfyError: exit 2 for what is neither a folder nor an id, exit 3 for files that cannot be had.
    """
    if is_folder(wanted):
        return _folder(role, wanted, skip)
    found = cached(role, wanted, skip)
    if found:
        return found
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, XetDownloadError

    failure: Exception | None = None
    for id, revision in sources(role, wanted):
        try:
            return _fetch(role, id, revision, skip)
        except (FourdfyError, OSError, HTTPError, ImportError, ValueError, XetDownloadError) as error:  # ImportError: SOCKS
            failure = failure or error
            if isinstance(error, (HTTPError, ConnectionError)) and not isinstance(error, HfHubHTTPError):
                break  # no network: no mirror either
    if isinstance(failure, FourdfyError):
        raise failure
    assert failure is not None
    raise refusal(role, wanted, failure) from failure


def cached(role: str, wanted: str = "", skip: tuple[str, ...] = ()) -> Path | None:
    """The folder with all of a role's files if it is on this machine; never asks the network. Raises FourdfyError (exit 2) as `locate`."""
    if is_folder(wanted):
        folders = [Path(wanted).expanduser()]
    else:
        folders = [folder for id, revision in sources(role, wanted) for folder in _snapshots(id, revision)]
    return next((folder for folder in folders if _complete(role, folder, skip)), None)


def missing_bytes(role: str, wanted: str = "", skip: tuple[str, ...] = ()) -> int:
    """Bytes that `locate` would download, from the table (for an id it does not know: as much as the role's own row); no network."""
    if is_folder(wanted) or cached(role, wanted, skip):
        return 0
    known = described(role, wanted) or row(role)
    return known.bytes - (known.text_bytes if skip else 0)


def skipped(role: str, models: Models) -> tuple[str, ...]:
    """The parts that a role does without: text encoder and tokenizer where there are ready embeddings."""
    return TEXTS if role == "video" and models.embeddings else ()


def is_folder(wanted: str) -> bool:
    """Whether a model is named by a folder (that may not exist) rather than by a Hub id."""
    return bool(wanted) and (wanted[0] in "./~\\" or Path(wanted).is_dir())


def sources(role: str, wanted: str = "") -> list[tuple[str, str]]:
    """(id, revision) in the order to try: what is asked for, and where the table pins it, its mirrors. Raises FourdfyError (exit 2)."""
    wanted = wanted or row(role).id
    if not ID.fullmatch(wanted):
        raise FourdfyError(f"models.{role}: {wanted!r} is neither a folder nor a Hub id", nearest(role, wanted), USAGE)
    id, _, revision = wanted.partition("@")
    known = find(id, role)
    if revision or known is None:
        return [(id, revision or "main")]
    pins = [f"{known.id}@{known.revision}", *known.mirrors]
    pins.sort(key=lambda pin: not pin.startswith(f"{id}@"))  # the one asked for first
    return [(pin.partition("@")[0], pin.partition("@")[2]) for pin in pins]


def choose(role: str, names: Iterable[str], where: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Of the paths that a repository or a folder has, those a role wants, half precision before full, without the parts to `skip`.

    Raises FourdfyError (exit 3) naming the first that is missing.
    """
    names = set(names)
    if role == "video" and any(name.startswith(NEWER) for name in names) and "unet/config.json" not in names:
        return _transformer(names, where, skip)
    chosen = [name for name in names if role == "multiview" and name.startswith(f"{CAMERA_PROJECTION}/") and not name.endswith(PICKLES)]
    chosen = [name for name in chosen if name.endswith((".json", ".safetensors"))]
    for options in _wanted(role, skip):
        name = next((name for name in options if name in names), None)
        if name:
            chosen.append(name)
        elif options[0] not in OPTIONAL:
            raise _lacks(names, options[-1], where)
    return sorted(chosen)


def _transformer(names: set[str], where: str, skip: tuple[str, ...]) -> list[str]:
    """The paths of a newer video model: a transformer, weights in one file or in numbered shards with their index."""
    chosen = [name for name in ("model_index.json",) if name in names]
    for part in (part for part in TRANSFORMER if part not in skip):
        if part in WEIGHTS:
            chosen += _weights(names, where, part)
        options = [f"{part}/{name}" for name in (T5_TOKENIZERS if part == "tokenizer" else OTHERS.get(part, ("config.json",)))]
        name = next((name for name in options if name in names), None)
        if name is None:
            raise _lacks(names, options[-1], where)
        chosen.append(name)
    return sorted(chosen)


def _weights(names: set[str], where: str, part: str) -> list[str]:
    """A part's weights: half precision, one file, or an index and all its shards."""
    stem = f"{part}/{WEIGHTS[part]}"
    for whole in (f"{stem}{FP16}.safetensors", f"{stem}.safetensors"):
        if whole in names:
            return [whole]
    index = f"{stem}.safetensors.index.json"
    shards = {name for name in names if re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.safetensors", name)}
    if index not in names or not shards:
        raise _lacks(names, f"{stem}.safetensors", where)
    if lacking := missing_shard(shards):
        raise _lacks(names, lacking, where)
    return [index, *shards]


def files(role: str, folder: Path, skip: tuple[str, ...] = ()) -> list[str]:
    """The paths in a folder that a role reads; raises FourdfyError (exit 3) if one is missing."""
    return choose(role, _listing(role, folder), str(folder), skip)


def refuse_non_commercial(models: Models, roles: Iterable[str] = ROLES) -> None:
    """Raises FourdfyError (exit 2) if a model that would be used may not be used for profit, as far as the table knows."""
    for role in roles:
        wanted = getattr(models, role)
        known = described(role, wanted) if wanted or models.set == "paper" else None
        if known and not known.commercial:
            message = f"{known.id} ({role}) is licensed {known.licence}, which forbids commercial use"
            raise FourdfyError(message, f"weights that you may use: --set models.{role}=FOLDER", USAGE)


def described(role: str, wanted: str = "") -> Row | None:
    """The table's row of what a role would use, None if unknown; a snapshot in the Hub's cache is known by its folder's name."""
    if not wanted:
        return row(role)
    if not is_folder(wanted):
        return find(wanted.partition("@")[0], role)
    repository = next((part for part in Path(wanted).expanduser().resolve().parts if part.startswith("models--")), "")
    return find(repository.removeprefix("models--").replace("--", "/"), role)


def _wanted(role: str, skip: tuple[str, ...]) -> list[tuple[str, ...]]:
    """For each file of a role its possible paths, best first."""
    if role in LOOSE:
        return [(name,) for name in LOOSE[role]]
    found: list[tuple[str, ...]] = []
    for part in (part for part in PARTS[role] if part not in skip):
        if part in WEIGHTS:
            stem = f"{part}/{WEIGHTS[part]}"
            found += [(f"{part}/config.json",), (f"{stem}{FP16}.safetensors", f"{stem}.safetensors")]
        else:
            found += [(f"{part}/{name}",) for name in OTHERS[part]]
    return found


def _folder(role: str, wanted: str, skip: tuple[str, ...]) -> Path:
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        raise FourdfyError(f"models.{role}: there is no folder {wanted}", f"fourdfy models pull {role}", ENVIRONMENT)
    files(role, folder, skip)
    return folder


def _complete(role: str, folder: Path, skip: tuple[str, ...]) -> bool:
    try:
        return bool(files(role, folder, skip))
    except FourdfyError:
        return False


def _listing(role: str, folder: Path) -> list[str]:
    """Paths of the files in the folders of a role's parts, and right in the folder."""
    newer = TRANSFORMER[:1] if role == "video" else ()
    places = [folder, *(folder / part for part in (*PARTS[role], *newer, CAMERA_PROJECTION))]
    return [path.relative_to(folder).as_posix() for place in places if place.is_dir() for path in place.iterdir() if path.is_file()]


def _snapshots(id: str, revision: str) -> list[Path]:
    """Folders of the Hub's cache that hold (part of) a repository at a branch, a commit, or a commit that starts like this."""
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE) / f"models--{id.replace('/', '--')}"
    ref = storage / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    return sorted((storage / "snapshots").glob(f"{commit}*")) if re.fullmatch(r"[0-9a-f]{7,40}", commit) else []


def _fetch(role: str, id: str, revision: str, skip: tuple[str, ...]) -> Path:
    """Download a role's files into the Hub's cache; raises FourdfyError or one of huggingface_hub's errors."""
    from huggingface_hub import HfApi, logging, snapshot_download

    logging.set_verbosity_error()  # what matters of its retries and warnings is in the error raised
    api = HfApi()
    if re.fullmatch(r"[0-9a-f]{7,39}", revision):  # the Hub wants all 40 digits
        commits = [commit.commit_id for commit in api.list_repo_commits(id)]
        revision = next((commit for commit in commits if commit.startswith(revision)), revision)
    info = api.model_info(id, revision=revision)
    chosen = choose(role, [file.rfilename for file in info.siblings or []], f"{id}@{revision}", skip)
    return Path(snapshot_download(id, revision=revision, allow_patterns=chosen))


def _lacks(names: set[str], path: str, where: str) -> FourdfyError:
    """What to say of a repository or folder in which `path` is missing."""
    part = path.rpartition("/")[0]
    pickled = sorted(name for name in names if name.startswith(part) and name.endswith(PICKLES))
    if path.endswith(".safetensors") and pickled:
        folder = where if is_folder(where) else "FOLDER"
        get = "" if is_folder(where) else f"hf download {where.partition('@')[0]} --local-dir FOLDER && "
        hint = get + typed("fourdfy", "models", "convert", folder, "--trust", "--out", f"{folder}-safe")
        return FourdfyError(f"{where} has no {path}, only the pickle {pickled[0]}, which may hold code", hint, ENVIRONMENT)
    return FourdfyError(f"{where} has no {path}", "fourdfy models list", ENVIRONMENT)
