"""What to say of a download that failed: the reason in one line, and the command that mends it."""

from __future__ import annotations

import difflib
import errno
import os
import re

from fourdfy_cli.diffusion.table import TABLE, row
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def nearest(role: str, wanted: str) -> str:
    """A setting that would work: the table's id nearest to what was typed."""
    ids = [known.id for known in TABLE if known.role == role]
    near = difflib.get_close_matches(wanted.partition("@")[0], ids, 1, cutoff=0.0)
    return f"--set models.{role}={near[0]}"


def refusal(role: str, wanted: str, error: Exception) -> FourdfyError:
    """The FourdfyError (exit 3) for a failed download of a role's files."""
    name, again = wanted or row(role).id, f"fourdfy models pull {role}"
    if said := _said_by_hub(role, name, error):
        return FourdfyError(*said, ENVIRONMENT)
    why = line(error)
    if package := re.search(r"'(\w+)' package is not installed", str(error)):  # SOCKS wants one
        return FourdfyError(f"cannot download {name}: {why}", f"pip install {package[1]}", ENVIRONMENT)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FourdfyError(f"cannot download {name}: {why}", f"HF_HOME=ANOTHER_FOLDER {again}", ENVIRONMENT)
    if detours := _detours(error):
        without = " ".join(f"-u {key}" for key in detours)
        return FourdfyError(f"cannot download {name} with {', '.join(detours)} set: {why}", f"env {without} {again}", ENVIRONMENT)
    return FourdfyError(f"cannot download {name}: {why}", f"files that are whole are kept: {again}", ENVIRONMENT)


def _said_by_hub(role: str, name: str, error: Exception) -> tuple[str, str] | None:
    """Message and hint where the Hub itself, or the wish not to ask it, says no."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    again = f"fourdfy models pull {role}"
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not in the local cache, and HF_HUB_OFFLINE is set", f"HF_HUB_OFFLINE=0 {again}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    if status == 401 and get_token():
        reason = getattr(error, "server_message", None) or "invalid or expired"
        return f"{name}: the Hub refuses your token: {reason[:200]}", "hf auth login"
    if isinstance(error, GatedRepoError):
        return f"{name} wants you to accept its terms and log in", "hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name} is not on the Hub, or is private", nearest(role, name)
    if isinstance(error, RevisionNotFoundError):
        return f"{name.partition('@')[0]} has no such revision", nearest(role, name)
    return None


def _detours(error: Exception) -> list[str]:
    """The variables that may have kept a connection from being made."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):  # there was an answer
        return []
    certificates = CERTIFICATES if re.search("SSL|certificate|No such file", str(error)) else ()
    return [key for key in ("HF_ENDPOINT", *PROXIES, *certificates) if os.environ.get(key)]


def line(error: BaseException) -> str:
    """The first line of an error's message, without what a proxy's address may hold of names and passwords."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"//[^/@\s]*@", "//", text)[:200]
