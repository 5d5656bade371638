"""`fourdfy doctor`: is this machine ready, and what to type where it is not."""

from __future__ import annotations

from dataclasses import asdict

from fourdfy_cli.cli import options
from fourdfy_cli.console import emit
from fourdfy_cli.errors import ENVIRONMENT, FourdfyError


@options.grouped
def doctor(common: options.Common) -> None:
    """Check this machine: packages, GPU, disk, ffmpeg, models; say what is missing."""
    from fourdfy_cli import doctor as checks

    found = list(checks.examine())
    broken = checks.broken(found)
    if not common.json:
        common.output.finish({"ready": not broken, "checks": {check.part: str(check) for check in found}})
    elif broken:  # the envelope of a failure holds no data
        for check in found:
            emit({"event": "check", **asdict(check)})
    else:
        common.output.finish({"ready": True, "checks": [asdict(check) for check in found]})
    if broken:
        raise FourdfyError(f"{broken[0].part}: {broken[0].detail}", broken[0].mend, ENVIRONMENT)
