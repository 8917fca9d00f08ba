"""What the doctor finds, and that it finds what is made wrong."""

import json
import math
import re

import pytest
import torch
from typer.testing import CliRunner

from agiledpo.cli import app
from agiledpo.doctor import Examination, Finding, hardware, software
from agiledpo.doctor.finding import guarded
from agiledpo.doctor.hardware import check_devices, check_disk, check_threads
from agiledpo.doctor.models import check_embedded_model, check_hub
from agiledpo.doctor.self_test import check_training
from agiledpo.doctor.software import check_compilers, check_libraries
from agiledpo.doctor.terminal import check_terminal
from agiledpo.embedded.model import MODEL_NAME, EmbeddedModelError, embedded_model_destination, embedded_model_path


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_one_step_has_the_loss_ln_2() -> None:
    (finding,) = check_training()
    assert finding.status == "ok"
    before, after = (float(number) for number in re.findall(r"(\d\.\d+) (?:before|after)", finding.said))
    assert before == pytest.approx(math.log(2), abs=1e-6)
    assert after < before


def test_a_wrong_loss_is_an_error(monkeypatch) -> None:
    from agiledpo.algorithms import DPO

    honest = DPO.learn
    monkeypatch.setattr(DPO, "learn", lambda *args, **kwargs: {"loss": honest(*args, **kwargs)["loss"] * 1.001})
    (finding,) = check_training()
    assert finding.status == "error"
    assert "constraints.txt" in finding.remedy


def test_devices_compute_and_a_wrong_gradient_is_found(monkeypatch) -> None:
    found = by_name(check_devices())["cpu"]
    assert found.status in ("ok", "note")
    assert re.search(r"product \d+\.\d ms in float32, \d+\.\d ms in bfloat16", found.said)
    monkeypatch.setattr(hardware, "_TOLERANCE", 0.0)
    assert by_name(check_devices())["cpu"].status == "error"


def test_a_gpu_that_rounds_products_to_tf32_is_sound(monkeypatch) -> None:
    honest = torch.Tensor.__matmul__

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        """To the nearest of 10 bits of mantissa, as tensor cores take float32."""
        if tensor.dtype != torch.float32:
            return tensor
        return ((tensor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    class TF32(torch.autograd.Function):
        @staticmethod
        def forward(ctx, left, right):
            ctx.save_for_backward(left, right)
            return honest(rounded(left), rounded(right))

        @staticmethod
        def backward(ctx, grad):
            left, right = ctx.saved_tensors
            return honest(rounded(grad), rounded(right).mT), honest(rounded(left).mT, rounded(grad))

    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: TF32.apply(left, right))
    hardware._check_product(torch.device("cpu"))


def test_only_the_embedded_model_of_this_version_counts(monkeypatch, tmp_path) -> None:
    def nowhere():
        raise EmbeddedModelError("install it")

    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path))
    monkeypatch.setattr("agiledpo.embedded.model.find_gguf", nowhere)
    (tmp_path / "embedded" / f"{MODEL_NAME}-of-old").mkdir(parents=True)
    (finding,) = check_embedded_model()
    assert (finding.status, finding.said) == ("note", "not installed")
    embedded_model_destination().mkdir()
    (finding,) = check_embedded_model()
    assert (finding.status, finding.said) == ("ok", f"{embedded_model_destination().name}, converted")
    assert embedded_model_path() == embedded_model_destination()


def test_libraries_against_what_the_package_asks_for(monkeypatch) -> None:
    found = by_name(check_libraries())
    assert found["torch"].said.startswith(torch.__version__.split("+")[0])
    assert found["torch"].status == "ok"
    versions = {"torch": "2.1.0", "liger-kernel": None, "typer": None}
    honest = software._version
    monkeypatch.setattr(software, "_version", lambda name: versions[name] if name in versions else honest(name))
    found = by_name(check_libraries())
    assert (found["torch"].status, found["torch"].remedy) == ("warning", "pip install 'torch>=2.6'.")
    assert (found["typer"].status, found["typer"].said) == ("error", "not installed")
    assert (found["liger"].status, found["liger"].said) == ("note", "not installed: liger-kernel")
    assert "agiledpo[liger]" in found["liger"].remedy
    assert {"gguf", "matplotlib"} <= set(re.findall(r"[a-z]+", found["demo"].said))


def test_threads_and_disk(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(hardware, "usable_cores", lambda: 0)
    assert by_name(check_threads())["threads"].remedy == "Set OMP_NUM_THREADS=0."
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (1e3, 0.0, 0.0))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert "OMP_WAIT_POLICY=passive" in by_name(check_threads())["shared machine"].remedy
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert by_name(check_threads())["shared machine"].status == "ok"
    monkeypatch.setenv("AGILEDPO_CACHE", str(tmp_path / "not" / "yet"))
    assert str(tmp_path / "not" / "yet") in by_name(check_disk())["AgileDPO's cache"].said
    monkeypatch.setattr(hardware, "_LITTLE_DISK", 2**70)
    assert by_name(check_disk())["AgileDPO's cache"].status == "warning"


def test_models_compilers_and_terminal(monkeypatch) -> None:
    (embedded,) = check_embedded_model()
    assert embedded.name == "embedded model"
    assert "offline" in by_name(check_hub(network=False))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert by_name(check_hub(network=True))["network"].status == "warning"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert by_name(check_compilers())["C++ compiler"].said == "none"
    monkeypatch.setenv("COLUMNS", "40")
    assert by_name(check_terminal())["width"].status == "note"


def test_a_check_that_fails_is_a_finding() -> None:
    def fails():
        raise OSError("no such luck")

    (vital,), (other,) = guarded("training", fails), guarded("storage", fails)
    assert (vital.status, other.status, vital.said) == ("error", "warning", "OSError: no such luck")
    assert not Examination((vital,)).can_train
    good = Finding("training", "first part", "ok", "fine")

    def fails_later():
        yield good
        fails()

    assert guarded("training", fails_later) == [good, vital]
    assert Examination((other,)).can_train


def test_the_command_and_its_status(monkeypatch) -> None:
    good = Finding("software", "Python", "ok", "3.12 [x]")
    bad = Finding("training", "one step of DPO", "error", "loss 0.7", "Install anew.")
    for findings, status in (((good,), 0), ((good, bad), 1)):
        monkeypatch.setattr("agiledpo.doctor.examine", lambda network, found=findings: Examination(found))
        table = CliRunner().invoke(app, ["doctor"])
        assert table.exit_code == status
        assert "3.12 [x]" in table.stdout
        content = CliRunner().invoke(app, ["doctor", "--format", "json"])
        assert content.exit_code == status
        assert json.loads(content.stdout)["can_train"] is (status == 0)
    assert "Install anew." in table.stdout
    assert "1 errors, 0 warnings, 0 notes, 1 ok." in table.stdout
