"""Runs on the tiny recipe: however a run is cut, the final checkpoint is the same, bit by bit."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import pytest
import torch
from samples import Watch, lines, tiny_recipe

from fourdfy_cli import hybrid, memory, presets
from fourdfy_cli.errors import FourdfyError
from fourdfy_cli.evaluate import limits
from fourdfy_cli.evaluate.truth import score
from fourdfy_cli.run import train
from fourdfy_cli.store import checkpoint
from fourdfy_cli.store.folder import Metrics, metrics_lines, metrics_row, run_folder, slug

PROMPT = "a red dog jumping"


def go(out: Path, recipe, stages=(1, 2, 3), resume=None, events=None, seed=3) -> train.RunResult:
    return train.run(PROMPT, recipe, out, seed, stages, resume, memory.Machine(), events or Watch())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run."""
    recipe = tiny_recipe()
    return go(tmp_path_factory.mktemp("whole"), recipe), recipe


def test_a_run_leaves_all_it_promises(whole):
    result, recipe = whole
    names = {p.name for p in result.files}
    assert {"run.json", "metrics.jsonl", "stage1.pt", "stage2.pt", "stage3.pt", "last.pt", "orbit.mp4"} <= names
    about = json.loads((result.run_dir / "run.json").read_text())
    assert about["status"] == "done" and about["prompt"] == PROMPT and about["recipe"]["name"] == "tiny"
    rows = lines(result.run_dir)
    assert [(r["stage"], r["step"]) for r in rows] == [(s, k) for s, n in ((1, 2), (2, 4), (3, 5)) for k in range(n)]
    assert {r["branch"] for r in rows if r["stage"] == 1} == {"multiview"}
    state = checkpoint.load(result.checkpoint)
    assert state["stage"] == 3 and state["step"] == 5 and state["optimizer"] is None


def test_what_each_stage_changes(whole):
    result, _ = whole
    one, two, three = (checkpoint.load(result.run_dir / f"stage{k}.pt") for k in (1, 2, 3))
    assert torch.equal(one["scene"]["field.dynamic.table"], two["scene"]["field.dynamic.table"])
    assert not torch.equal(two["scene"]["field.dynamic.table"], three["scene"]["field.dynamic.table"])
    assert not torch.equal(one["scene"]["field.static.table"], two["scene"]["field.static.table"])
    assert not one["lora"]
    if any(r["stage"] == 2 and r["branch"] == "image" for r in lines(result.run_dir)):
        assert any(v.abs().max() > 0 for k, v in two["lora"].items() if "lora_B" in k)  # Eq. 5 really trains it


@pytest.mark.long
def test_stages_by_files_equal_one_run(whole, tmp_path):
    result, recipe = whole
    first = go(tmp_path, recipe, (1,))
    second = go(tmp_path, recipe, (2,), first.checkpoint)
    third = go(tmp_path, recipe, (3,), second.checkpoint)
    assert checkpoint.load(third.checkpoint)["digest"] == checkpoint.load(result.checkpoint)["digest"]
    assert lines(third.run_dir) == lines(result.run_dir)
    assert third.video and third.video.is_file()


@pytest.mark.long
def test_one_thread_and_two_end_the_same(tmp_path, monkeypatch):
    """Two steps of each branch on the nano models, at the sizes of their own preset. Stage 1 to the bit; after it some processors' oneDNN
    sums differently over a single picture."""
    monkeypatch.setattr(train.render, "orbit", lambda scene, recipe, path: path)
    threads, ends = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        result = go(tmp_path / str(count), presets.smoke(presets.nano()))
        rows = [metrics_row(line) for line in metrics_lines(result.run_dir / "metrics.jsonl")]
        ends.append((checkpoint.load(result.run_dir / "stage1.pt")["digest"], [row[row["branch"]] for row in rows]))
    torch.set_num_threads(threads)
    assert ends[0][0] == ends[1][0] and len(ends[0][1]) == 6
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (2, 1, 4), (5, 4), (6, 1, 1, 1), (11,)])  # a stage's last step: 2, 6, 11
@pytest.mark.long
def test_interrupted_anywhere_and_run_again_it_ends_the_same(whole, tmp_path, cuts):
    result, recipe = whole
    before = signal.getsignal(signal.SIGINT)
    for k, cut in enumerate(cuts):
        how, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[k % 2]
        with pytest.raises(FourdfyError) as stopped:
            go(tmp_path, recipe, events=Watch(cut, how))
        assert stopped.value.code == code
    assert signal.getsignal(signal.SIGINT) is before
    again = go(tmp_path, recipe)
    assert lines(again.run_dir) == lines(result.run_dir)
    for stage in ("stage1.pt", "stage2.pt", "stage3.pt"):
        assert checkpoint.load(again.run_dir / stage)["digest"] == checkpoint.load(result.run_dir / stage)["digest"]


def test_a_finished_run_is_not_run_again(whole):
    result, recipe = whole
    stamp = result.checkpoint.stat().st_mtime_ns
    events = Watch()
    go(result.run_dir.parent, recipe, events=events)
    assert events.steps == 0 and result.checkpoint.stat().st_mtime_ns == stamp


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, tmp_path):
    result, recipe = whole
    with pytest.raises(FourdfyError):
        go(tmp_path, recipe, events=Watch(4))
    folder = run_folder(tmp_path, PROMPT, 3)
    data = bytearray((folder / "last.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "last.pt").write_bytes(data)
    again = go(tmp_path, recipe)
    assert checkpoint.load(again.checkpoint)["digest"] == checkpoint.load(result.checkpoint)["digest"]


@pytest.mark.parametrize(
    "name, stage, hint", [("stage1.pt", 1, "stage2"), ("stage1.pt", 3, "stage2"), ("stage2.pt", 2, "stage3"), ("stage3.pt", 3, "render")]
)
def test_the_wrong_stages_checkpoint_names_the_right_command(whole, tmp_path, name, stage, hint):
    result, recipe = whole
    with pytest.raises(FourdfyError) as error:
        go(tmp_path, recipe, (stage,), result.run_dir / name)
    assert error.value.code == 2 and f"fourdfy {hint}" in error.value.hint and str(result.run_dir / name) in error.value.hint
    assert not list(tmp_path.iterdir())


def test_another_recipe_does_not_overwrite_a_run(whole):
    result, recipe = whole
    before = {p: p.stat().st_mtime_ns for p in result.files}
    with pytest.raises(FourdfyError) as error:
        go(result.run_dir.parent, dataclasses.replace(recipe, weight_decay=0.5))
    assert error.value.code == 2 and "--out" in error.value.hint
    assert {p: p.stat().st_mtime_ns for p in result.files} == before


@pytest.mark.parametrize(
    "loss, parts, what",
    [
        (math.nan, [], "multiview"),
        (1.0, [math.nan], "the gradient of static"),
        (1.0, [-math.inf], "the gradient of static"),
        (1.0, [math.inf, -math.inf], "the gradient of static"),
    ],
)
def test_what_is_not_finite_is_skipped_and_ends_the_run_after_five(tmp_path, tiny, monkeypatch, loss, parts, what):
    def poisoned(scene, guidances, context, chunks):
        scene.field.static.table.grad = torch.zeros_like(scene.field.static.table)
        scene.field.static.table.grad.view(-1)[: len(parts)] = torch.tensor(parts)
        return hybrid.Outcome("multiview", {"multiview": loss})

    monkeypatch.setattr(hybrid, "step", poisoned)
    recipe = dataclasses.replace(tiny, stage1=dataclasses.replace(tiny.stage1, steps=20))
    with pytest.raises(FourdfyError) as error:
        go(tmp_path, recipe, (1,))
    assert error.value.code == 5 and f"{what} in the multiview branch" in error.value.message
    kept = checkpoint.load(run_folder(tmp_path, PROMPT, 3) / "last.pt")  # nothing poisoned in it: `save` refuses
    assert kept["retries"] == train.RETRIES and kept["step"] == train.BAD_STEPS - 1
    about = json.loads((run_folder(tmp_path, PROMPT, 3) / "run.json").read_text())
    assert about["status"] == "failed" and about["skipped_steps"] == (train.RETRIES + 1) * train.BAD_STEPS


def test_dynamic_features_are_drawn_back_by_a_share_of_their_rate(whole):
    """After one step from the end of stage 2, and nothing else is."""
    steps = {}
    for l1 in (0.0, 0.5):
        begin = limits.start(
            whole[0].run_dir, ["stage3.steps=1", "stage3.lr.dynamic=0.01", "stage3.lr_decay.start=0.5", f"stage3.l1_time={l1}"]
        )
        steps[l1] = limits.stage3(begin, limits.judges("learned/learned"), lambda text: None).state_dict()
    changed = {key for key, value in steps[0.0].items() if not torch.equal(value, steps[0.5][key])}
    assert changed == {"field.dynamic.table"}
    free, drawn = (steps[l1]["field.dynamic.table"] for l1 in (0.0, 0.5))
    assert free.abs().max() > 4e-3 and torch.allclose(drawn, free.sign() * (free.abs() - 0.5 * 0.5 * 0.01).clamp_min(0), atol=1e-7)


def test_scoring_a_run(whole):
    result, _ = whole
    measures = score(result.run_dir)
    assert {"iou", "psnr", "depth_error", "motion_ratio", "object_ok", "colour_ok", "fronts"} <= set(measures)
    assert len(measures["per_view"]) == 32 and (result.run_dir / "nano.json").is_file()
    assert measures["iou"] == pytest.approx(sum(v["iou"] for v in measures["per_view"]) / 32)
    still = score(result.run_dir / "stage2.pt")  # of one context, but whether it stands still is measured
    assert len(still["per_view"]) == 8 and 0 < still["motion_ratio"] < min(0.05, measures["motion_ratio"])


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": 1, "step": 0}\n{"stage": 1, "step": 1}\n{"stage": 2, "step": 0}\nhalf a li')
    Metrics(path, 1, 1).close()
    assert path.read_text() == '{"stage": 1, "step": 0}\n'


@pytest.mark.parametrize("prompt", ["a red dog", "../../etc/passwd", "-rf /", "NUL\x00\n", "犬", "x" * 500, "", "CON", "\u202egod"])
def test_slugs_are_tame(prompt):
    name = slug(prompt)
    assert 0 < len(name) <= 48 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and name[0] != "-"


def test_prompts_that_share_their_first_letters_have_folders_of_their_own(tmp_path):
    long = "a very long prompt about a red dog that jumps over the lazy brown fox "
    names = [slug(prompt) for prompt in (long + "at noon", long + "at night", "犬", "猫", "a red dog", "a red dog 犬")]
    assert len(set(names)) == 6 and names[4] == "a-red-dog"
    old = tmp_path / "a-very-long-prompt-about-a-red-dog-that-jumps-ov-s0"
    old.mkdir()
    (old / "run.json").write_text(json.dumps({"prompt": long + "at noon"}))  # as 0.1.0 named it
    assert run_folder(tmp_path, long + "at noon", 0) == old != run_folder(tmp_path, long + "at night", 0)


class Scarce:
    """`hybrid.step` on a machine whose memory runs out after the LoRA has its gradient, so many times, at some step."""

    def __init__(self, times: float, at: tuple[int, int] | None):
        self.times, self.at, self.real, self.failures = times, at, hybrid.step, 0

    def __call__(self, scene, guidances, context, chunks):
        outcome = self.real(scene, guidances, context, chunks)
        if self.at in (None, (context.stage, context.step)) and self.failures < self.times:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outcome


def test_out_of_memory_replays_the_step_on_the_next_rung(whole, tmp_path, monkeypatch):
    """Rungs that compute alike: then the replayed run must be the uninterrupted one, bit by bit."""
    scarce = Scarce(2, (2, 1))
    monkeypatch.setattr(memory, "LADDER", 3 * (memory.Chunks(),))
    monkeypatch.setattr(hybrid, "step", scarce)
    notes: list[str] = []
    events = Watch()
    events.note = notes.append
    result = go(tmp_path, whole[1], events=events)
    assert scarce.failures == 2 and sum("out of memory at step 1" in note for note in notes) == 2
    assert checkpoint.load(result.checkpoint)["digest"] == checkpoint.load(whole[0].checkpoint)["digest"]


def test_out_of_memory_at_the_end_of_the_ladder_says_what_is_needed(whole, tmp_path, monkeypatch):
    scarce = Scarce(math.inf, None)
    monkeypatch.setattr(hybrid, "step", scarce)
    with pytest.raises(FourdfyError, match=r"stage 1 needs about \d+\.\d GB") as caught:
        go(tmp_path, whole[1])
    assert caught.value.code == 4 and caught.value.hint and scarce.failures == len(memory.LADDER)


def test_too_little_memory_is_told_before_the_first_step(tmp_path):
    with pytest.raises(FourdfyError, match="there are 0.1") as caught:
        train.run(PROMPT, tiny_recipe(), tmp_path, 3, (1,), None, memory.Machine(vram=0.1), Watch())
    assert caught.value.code == 4
