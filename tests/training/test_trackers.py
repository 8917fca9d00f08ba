"""Trackers of the real packages, offline: what each stored is read back, and is what the log has."""

import json
import math
import os
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from agiledpo.algorithms import DPO
from agiledpo.training.agilerl_tracking import trackers_from
from agiledpo.training.metrics_log import MetricsLog
from agiledpo.training.trackers import Trackers
from agiledpo.training.tracking_services import WandB
from agiledpo.training.train_llm import finetune_llm_preference

NAMES = ["tensorboard", "wandb", "mlflow", "trackio"]
Steps = dict[int, dict[str, float]]
MEASURED_APART = ("time/", "system/")  # the log and the trackers look at the clock one after the other


@pytest.fixture(scope="module")
def trackio_directory(tmp_path_factory) -> Path:
    """Trackio asks for its place once in a process, when it is imported."""
    directory = tmp_path_factory.mktemp("trackio")
    os.environ["TRACKIO_DIR"] = str(directory)
    return directory


@pytest.fixture
def offline(trackio_directory, tmp_path, monkeypatch) -> Path:
    """A directory in which all trackers keep what they store, without a network."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny comes without a database
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    return tmp_path


@pytest.fixture
def train(make_env, tiny_model, lora):
    def run(path: Path, agents: int = 2, **options: Any):
        population = DPO.population(
            agents, actor_network=tiny_model(), lora_config=lora, lr=1e-3, nll_alpha=0.0, batch_size=2
        )
        options = {"max_steps": 12, "evaluation_interval": 2, "verbose": False, "log_path": path, **options}
        return finetune_llm_preference(population, make_env(train=12, batch=4), **options)

    return run


# What each stored -----------------------------------------------------------------------------------------------------


def logged(path: Path) -> Steps:
    steps: Steps = defaultdict(dict)
    for line in map(json.loads, path.read_text().splitlines()):
        step = line.pop("step")
        steps[step] |= {name: float(value) for name, value in line.items()}
    return dict(steps)


def from_tensorboard(directory: Path) -> Steps:
    steps: Steps = defaultdict(dict)
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in steps[event.step]
            steps[event.step][name] = event.value
    return dict(steps)


def records(path: Path) -> Iterator[Record]:
    """W&B's file: LevelDB's log format, blocks of 32 KiB, with a header of its own."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def from_wandb(path: Path) -> tuple[str, Steps, dict[str, Any]]:
    """Id, figures by step and configuration of an offline run."""
    run, config = "", {}
    steps: Steps = defaultdict(dict)
    for record in records(path):
        run = record.run.run_id or run
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if items:
            values = {name: float(json.loads(value)) for name, value in items.items() if not name.startswith("_")}
            steps[int(items["_step"])] |= values
    return run, dict(steps), config


def from_mlflow(run_id: str | None = None) -> tuple[str, Steps, dict[str, str]]:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("agiledpo")
    (run,) = client.search_runs([experiment.experiment_id])
    steps: Steps = defaultdict(dict)
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            steps[metric.step][name] = metric.value
    return run.info.run_id, dict(steps), {**run.data.params, "status": run.info.status}


def from_trackio(project: str) -> dict[str, Steps]:
    from trackio.api import Api
    from trackio.sqlite_storage import SQLiteStorage

    stored = {}
    for run in Api().runs(project):
        steps: Steps = defaultdict(dict)
        for line in SQLiteStorage.get_logs(project, run.name):
            values = {name: value for name, value in line.items() if name.count("/")}
            steps[line["step"]] |= {name: float(value) for name, value in values.items()}
        stored[run.name] = dict(steps)
    return stored


def assert_same_figures(stored: Steps, log: Steps, *, rel: float = 0.0) -> None:
    assert sorted(stored) == sorted(log)
    for step, figures in log.items():
        assert stored[step].keys() == figures.keys()
        for name, value in figures.items():
            apart = name.startswith(MEASURED_APART)
            expected = pytest.approx(value, rel=rel, abs=0.0, nan_ok=True)
            assert apart or stored[step][name] == expected, (step, name)


# The tests ------------------------------------------------------------------------------------------------------------


def test_every_tracker_has_what_the_log_has_also_after_resuming(offline, train):
    trackers = Trackers(
        NAMES, run_name="first", directory=offline / "runs", config={"seed": 7, "note": "warm"},
        init_kwargs={"trackio": {"auto_log_cpu": False}},
    )  # fmt: skip
    path, checkpoints = offline / "metrics.jsonl", offline / "checkpoints"
    train(path, max_steps=8, trackers=trackers, checkpoint_path=checkpoints, checkpoint_steps=4)
    whole = logged(path)
    assert sorted(whole) == [4, 8]
    assert_same_figures(from_tensorboard(offline / "runs" / "first"), whole, rel=1e-6)  # float32
    (wandb_file,) = (offline / "runs" / "wandb").glob("offline-run-*/*.wandb")
    wandb_run, stored, config = from_wandb(wandb_file)
    assert_same_figures(stored, whole)
    assert {"seed": 7, "note": "warm", "beta": 0.1, "algorithm": "DPO", "total_rows": 8}.items() <= config.items()
    mlflow_run, stored, config = from_mlflow()
    assert_same_figures(stored, whole)
    assert {"seed": "7", "beta": "0.1", "total_rows": "8", "status": "FINISHED"}.items() <= config.items()
    assert_same_figures(from_trackio("agiledpo")["first"], whole)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="total_rows was 8")
        train(
            path, max_steps=12, trackers=trackers, checkpoint_path=checkpoints,
            resume_from=checkpoints / "step_4",
        )  # fmt: skip
    whole = logged(path)
    assert sorted(whole) == [4, 8, 12]
    assert_same_figures(from_tensorboard(offline / "runs" / "first"), whole, rel=1e-6)
    first, second = sorted((offline / "runs" / "wandb").glob("offline-run-*/*.wandb"))
    goes_on, stored, _ = from_wandb(second if first == wandb_file else first)
    assert goes_on == wandb_run
    assert_same_figures(stored, {step: whole[step] for step in (8, 12)})
    again, stored, _ = from_mlflow()
    assert again == mlflow_run
    assert_same_figures(stored, whole)
    runs = from_trackio("agiledpo")
    assert list(runs) == ["first"]
    assert_same_figures(runs["first"], whole)


class Own(GeneralTracker):
    """A tracker of the user's, which may fail."""

    name = "own"
    requires_logging_directory = False

    def __init__(self, fails_at: float = math.inf) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.calls: list[str] = []
        self.steps: Steps = defaultdict(dict)
        self.config: dict[str, Any] = {}

    @property
    def tracker(self) -> "Own":
        return self

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        if step >= self.fails_at:
            raise ConnectionError("The server is gone.")
        self.steps[step] |= values

    def finish(self):
        self.calls.append("finish")


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(train, tmp_path):
    well, ill = Own(), Own(fails_at=8)
    with pytest.warns(UserWarning, match="own 0 failed and is left out .* ConnectionError: The server is gone") as said:
        population, _ = train(tmp_path / "metrics.jsonl", trackers=[ill, well])
    assert sum("left out" in str(warning.message) for warning in said) == 1
    assert population[0].steps[-1] == 12
    assert sorted(ill.steps) == [4]
    assert_same_figures(dict(well.steps), logged(tmp_path / "metrics.jsonl"))
    assert well.calls == ["start", "finish"]
    assert all(isinstance(value, (bool, int, float, str)) for value in well.config.values())
    assert {"algorithm": "DPO", "agents": 2, "lr": 1e-3, "total_rows": 12}.items() <= well.config.items()


def test_a_tracker_of_the_accelerator_is_used_as_it_is(train, tmp_path):
    own = Own()
    accelerator = Accelerator(cpu=True, log_with=own)
    accelerator.init_trackers("mine", config={"seed": 1})
    train(tmp_path / "metrics.jsonl", trackers=accelerator.trackers, accelerator=accelerator)
    assert own.calls == ["start"]
    assert own.config == {"seed": 1}
    assert_same_figures(dict(own.steps), logged(tmp_path / "metrics.jsonl"))


def test_a_tracker_that_cannot_start_ends_the_run_before_it_begins(make_env, tiny_model, lora):
    class Locked(Own):
        def start(self):
            raise PermissionError("No key.")

    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    with pytest.raises(PermissionError, match="No key") as caught:
        finetune_llm_preference([agent], make_env(), trackers=Locked(), verbose=False)
    assert agent.steps == [0]
    assert caught.value.__notes__ == [
        "The tracker own 0 could not be started; correct that, or leave it out of trackers."
    ]


def test_a_package_that_is_missing_is_found_before_training(make_env, tiny_model, lora, monkeypatch):
    monkeypatch.setattr(WandB, "package", "wandb_that_is_not_installed")
    agent = DPO(actor_network=tiny_model(), lora_config=lora)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb, or pip install 'agiledpo"):
        finetune_llm_preference([agent], make_env(), wb=True)
    assert agent.steps == [0]


@pytest.mark.parametrize(
    ("trackers", "error", "message"),
    [
        ("wandbb", ValueError, "names 'wandbb'; there are tensorboard, wandb, mlflow, trackio"),
        ([3], TypeError, "holds 3"),
        (["wandb", "wandb"], ValueError, "names one twice: wandb, wandb"),
    ],
)
def test_nonsense_is_refused(trackers, error, message):
    with pytest.raises(error, match=message):
        Trackers.of(trackers)
    with pytest.raises(ValueError, match="init_kwargs are for mlflow, and trackers names wandb"):
        Trackers("wandb", init_kwargs={"mlflow": {}})


def test_agilerls_arguments_say_the_same(make_env):
    asked = trackers_from(
        (), {
            "wb": True, "wandb_api_key": "k" * 40, "wandb_project": "p", "wandb_entity": "e", "wandb_run_name": "r",
            "wandb_kwargs": {"tags": ["dpo"]}, "tensorboard": True, "tensorboard_log_dir": "logs",
            "init_hp": {"LR": 1e-5},
        },
    )  # fmt: skip
    settings = asked.init_kwargs["wandb"].pop("settings")
    assert settings.api_key == "k" * 40
    assert asked == Trackers(
        ("wandb", "tensorboard"), project="p", run_name="r", directory="logs", config={"LR": 1e-5},
        init_kwargs={"wandb": {"tags": ["dpo"], "entity": "e"}},
    )  # fmt: skip
    assert trackers_from((), {"wb": False, "wandb_project": "p", "tensorboard_log_dir": None}) == Trackers(())
    with pytest.raises(ValueError, match="wb=True and trackers both name wandb"):
        trackers_from(["wandb"], {"wb": True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'wandb_proj'; did you mean wandb_project"):
        finetune_llm_preference([], make_env(), wandb_proj="p")


def test_a_log_and_a_tracker_do_not_need_each_other(train, tmp_path):
    own = Own()
    train(None, trackers=own)
    assert sorted(own.steps) == [4, 8, 12]
    assert not MetricsLog(tmp_path / "metrics.jsonl").path.exists()
