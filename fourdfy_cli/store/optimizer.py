"""An optimizer's moments from a file: compared with its parameters before it uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fourdfy_cli.errors import DAMAGED, FourdfyError, typed
from fourdfy_cli.store import checkpoint


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, path: Path) -> None:
    """Give AdamW its moments, each compared with its parameter first: it would read and write beyond them. Rates stay its own. Raises
    FourdfyError (exit 6)."""
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = state.get("state") if isinstance(state, dict) else None
    if not isinstance(kept, dict) or not all(type(k) is int and 0 <= k < len(parameters) and isinstance(v, dict) for k, v in kept.items()):
        raise FourdfyError(f"{path} is damaged: its optimizer is none of this recipe", typed("fourdfy", "info", path), DAMAGED)
    for index, moments in kept.items():
        like, scalar = parameters[index].detach().to("meta"), torch.empty((), device="meta")
        checkpoint.check_tensors(path, f"optimizer.{index}", moments, {"step": scalar, "exp_avg": like, "exp_avg_sq": like})
    dense = {index: {name: value.clone() for name, value in moments.items()} for index, moments in kept.items()}
    optimizer.load_state_dict({"state": dense, "param_groups": own["param_groups"]})
