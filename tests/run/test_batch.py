"""Many scenes: here, one process for each, and on Ray; going on, failures, signals, processes that die."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samples import Talkative, fails, isolated, tiny_recipe  # noqa: F401

from fourdfy_cli.config import Recipe
from fourdfy_cli.errors import DIVERGED, ENVIRONMENT, TERMINATED, USAGE, FourdfyError
from fourdfy_cli.memory import Machine
from fourdfy_cli.output import render
from fourdfy_cli.run import batch, cluster, engines
from fourdfy_cli.run.batch import Job, JobResult, SceneStatus
from fourdfy_cli.run.signals import StopSignals
from fourdfy_cli.store import checkpoint

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PROMPTS = ("a red dog jumping", "a red cube", "a blue ball")


def few_steps() -> Recipe:
    tiny = tiny_recipe()
    stages = {f"stage{k}": dataclasses.replace(tiny.stage(k), steps=2, p_3d=1.0 if k < 3 else 0.5, p_image=0.0) for k in (1, 2, 3)}
    return dataclasses.replace(tiny, **stages)


def jobs_in(out: Path, prompts: tuple[str, ...] = PROMPTS) -> list[Job]:
    return [Job(prompt, 0, few_steps(), out) for prompt in prompts]


def digests(jobs: list[Job]) -> list[str]:
    return [checkpoint.load(job.folder / "stage3.pt")["digest"] for job in jobs]


class Watch:
    """A watcher that remembers, and calls `then` when a scene has the state that it waits for."""

    def __init__(self, state: str = "", then=None):
        self.rows, self.notes, self.seen, self.state, self.then = [], [], set(), state, then

    def scenes(self, rows):
        self.rows = rows
        self.seen |= {(job.folder.name, row.state) for job, row in rows}
        if self.then and any(row.state == self.state for _, row in rows):
            then, self.then = self.then, None
            then()

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Job], list[JobResult], Watch]:
    """Three scenes one after another in this process."""
    jobs, watch = jobs_in(tmp_path_factory.mktemp("batch")), Watch()
    with quick_videos():
        return jobs, batch.run(jobs, engines.InProcess(Machine()), watch), watch


@pytest.fixture
def quick() -> Iterator[None]:
    with quick_videos():
        yield


@contextmanager
def quick_videos() -> Iterator[None]:
    """Within it, videos are two frames of 16 pixels."""
    orbit = render.orbit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "orbit", lambda scene, recipe, path: orbit(scene, recipe, path, 16, 2))
        yield


def test_three_scenes_one_after_another(made):
    jobs, ended, watch = made
    assert ended == [JobResult(k, notes=("rendering the orbit video",)) for k in range(3)]
    assert {(job.folder.name, state) for job in jobs for state in ("waiting", "done")} <= watch.seen
    assert (jobs[0].folder.name, "running") in watch.seen
    assert all((job.folder / name).is_file() for job in jobs for name in ("stage1.pt", "stage2.pt", "stage3.pt", "orbit.mp4"))
    assert batch.summary(jobs, ended) == {"scenes": 3, "done": 3, "failed": 0, "failures": []}


def test_finished_scenes_are_skipped_and_begun_ones_go_on(made, quick, tmp_path):
    jobs, _, _ = made
    again, watch = jobs_in(tmp_path), Watch("running", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(FourdfyError) as stopped:
        batch.run(again, engines.InProcess(Machine()), watch)
    assert stopped.value.code == TERMINATED and not again[1].folder.exists()
    assert json.loads((again[0].folder / "run.json").read_text())["status"] == "interrupted"
    batch.run(again[:1], engines.InProcess(Machine()), Watch())
    stamp = (again[0].folder / "stage3.pt").stat().st_mtime_ns
    watch = Watch()
    batch.run(again, engines.InProcess(Machine()), watch)
    assert digests(again) == digests(jobs) and stamp == (again[0].folder / "stage3.pt").stat().st_mtime_ns
    assert (again[0].folder.name, "running") not in watch.seen


def test_a_scene_that_fails_is_listed_and_the_others_go_on(quick, tmp_path):
    good = jobs_in(tmp_path)[0]
    jobs, watch = [Job("a red ball", 0, few_steps(), tmp_path), good], Watch()
    jobs[0].folder.mkdir()
    (jobs[0].folder / "last.pt").write_bytes(b"no checkpoint")
    ended = batch.run(jobs, engines.InProcess(Machine()), watch)
    found = batch.summary(jobs, ended)
    assert (found["done"], found["failed"]) == (1, 1) and (good.folder / "orbit.mp4").exists()
    (failure,) = found["failures"]
    assert failure["prompt"] == "a red ball" and failure["code"] and failure["message"] and failure["hint"]
    assert any("failed" in note for note in watch.notes)


def test_what_cannot_be_done_is_said_before_anything_is_written(made, tmp_path):
    jobs, _, _ = made
    other = [dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, save_minutes=7)) for job in jobs]
    twins = [Job("a red dog", 0, few_steps(), tmp_path / "out"), Job("A red dog", 0, few_steps(), tmp_path / "out")]
    for wrong in (other, twins):
        with pytest.raises(FourdfyError) as error:
            batch.run(wrong, engines.InProcess(Machine()), Watch())
        assert error.value.code == USAGE
    assert not (tmp_path / "out").exists()


def test_models_are_fetched_once_before_the_first_scene(monkeypatch, tmp_path):
    happened = []
    monkeypatch.setattr(batch.sets, "specs", lambda models, roles: happened.append(sorted(roles)))

    class Engine:
        def run(self, jobs, tick, signals):
            for number in jobs:
                happened.append(number)
                yield JobResult(number)

    batch.run(jobs_in(tmp_path), Engine(), Watch())
    assert happened == [["multiview", "video"], 0, 1, 2]


def test_a_process_for_each_machine(made, tmp_path, monkeypatch):
    """Two at once, one of which is killed once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    again = jobs_in(tmp_path, PROMPTS[:2])

    def kill():
        held = [json.loads((job.folder / "run.lock").read_text())["pid"] for job in again if (job.folder / "run.lock").exists()]
        os.kill(held[0], signal.SIGKILL)

    watch = Watch("running", kill)
    ended = batch.run(again, engines.Processes((Machine(), Machine())), watch)
    assert [one.code for one in ended] == [0, 0] and watch.then is None
    assert digests(again) == digests(made[0][:2])
    assert not multiprocessing.active_children()


def test_one_who_dies_each_time_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "Worker", Dying)
    found = list(engines.Processes((Machine(),)).run(dict(enumerate(jobs_in(tmp_path)[:2])), lambda: None, StopSignals()))
    assert [(one.number, one.code) for one in found] == [(0, 1), (1, 1)] and Dying.begun == [0] * 4 + [1] * 4
    assert "died 4 times" in found[0].message and "fourdfy generate" in found[0].hint


class Dying:
    """A worker whose process dies at once."""

    begun: list[int] = []

    def __init__(self, number, job, machine):
        self.number, self.machine = number, machine
        self.begun.append(number)
        context = multiprocessing.get_context("spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=os._exit, args=(9,))
        self.process.start()
        sender.close()

    def ended(self):
        self.process.join()


def test_made_for_a_command(monkeypatch, tmp_path):
    """Scenes that diverged are told of, and any other failure ends it."""
    jobs, codes = jobs_in(tmp_path), [0, DIVERGED, 0]

    class Engine:
        def run(self, jobs, tick, signals):
            yield from (JobResult(number, codes[number], "why" if codes[number] else "") for number in reversed(jobs))

    assert batch.made(jobs, Engine(), Watch()) == {jobs[1].folder: "why"}
    codes[2] = ENVIRONMENT
    with pytest.raises(FourdfyError) as error:
        batch.made(jobs, Engine(), Watch())
    assert error.value.code == ENVIRONMENT and str(jobs[2].folder) in error.value.message


def test_a_scene_from_another_s_stage(made, quick, tmp_path):
    """Stages 2 and 3 alone, from a checkpoint that another folder holds; and again, when they are done."""
    there = made[0][0]
    job = dataclasses.replace(jobs_in(tmp_path)[0], start=there.folder / "stage1.pt")
    for _ in range(2):
        assert batch.made([job], engines.InProcess(Machine()), Watch()) == {}
        assert not (job.folder / "stage1.pt").exists() and digests([job]) == digests([there])
        (job.folder / "orbit.mp4").unlink()


def test_where_a_scene_stands(tmp_path):
    job = Job("a red dog", 0, tiny_recipe(), tmp_path)
    assert batch.running(job) == SceneStatus("running", 1, 0, 2)
    job.folder.mkdir()
    rows = [{"stage": 1, "step": 1, "seconds": 90.0}, *({"stage": 2, "step": k, "seconds": 5.0 + 2 * k} for k in range(3))]
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": 3, "st')
    assert batch.running(job) == SceneStatus("running", 2, 3, 4, 2.0 * (1 + 5))
    (job.folder / "metrics.jsonl").write_text("x" * batch.TAIL + "\n" + json.dumps(rows[0]) + "\n")
    assert batch.running(job) == SceneStatus("running", 1, 2, 2)


def test_a_lock_of_another_machine_that_died_is_waited_for(made, tmp_path, monkeypatch):
    job = jobs_in(tmp_path)[0]
    job.folder.mkdir()
    (job.folder / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        os.utime(job.folder / "run.lock", (0, 0))  # as if STALE seconds had gone by

    monkeypatch.setattr(cluster.time, "sleep", sleep)
    monkeypatch.setattr(cluster, "make", lambda number, *_: JobResult(number))
    assert cluster.on_cluster(5, job, Machine(), 1) == JobResult(5) and len(slept) == 1
    away = dataclasses.replace(job, out=tmp_path / "not-shared")
    ended = cluster.on_cluster(0, away, Machine(), 1)
    assert ended.code == ENVIRONMENT and "all machines share" in ended.message


def test_ray_missing_is_said(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    Path("p.txt").write_text("a red dog\n")
    fails(capsys, ["batch", "p.txt", "--engine", "ray"], ENVIRONMENT, "pip install 'fourdfy[ray]'")


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@needs_ray
@pytest.mark.long
def test_three_scenes_on_ray(made, tmp_path, monkeypatch):
    """The same bits as one after another, though the batch is stopped once, and a worker is killed on the way."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 else, which waits for ever beside other jobs
    again = jobs_in(tmp_path)

    def kill():
        held = [json.loads((job.folder / "run.lock").read_text())["pid"] for job in again if (job.folder / "run.lock").exists()]
        os.kill(held[0], signal.SIGKILL)

    with pytest.raises(FourdfyError) as stopped:
        batch.run(again, cluster.Ray(Machine(), memory=10**8), Watch("running", lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert stopped.value.code == TERMINATED and not any((job.folder / "run.lock").exists() for job in again)
    watch = Watch("running", kill)
    ended = batch.run(again, cluster.Ray(Machine(), memory=10**8), watch)
    assert [one.code for one in ended] == [0, 0, 0] and watch.then is None
    assert digests(again) == digests(made[0])


def test_a_job_with_much_to_tell_ends():
    found = list(engines.Processes((Machine(),)).run({0: Talkative()}, engines.none, StopSignals()))
    assert [(one.number, one.code, len(one.notes)) for one in found] == [(0, 0, 1000)]
