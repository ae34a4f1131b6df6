"""What libraries read from the environment changes no number; variables of a launch that is none end a command."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from bench import __main__ as benchmark

from lora_drop import processes
from lora_drop.cli import app as cli
from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.training.environment import CACHED_SHAPES, NAMES, TF32, keep_few_shapes, neutral_environment

pytestmark = pytest.mark.slow

LEFTOVERS = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "FSDP_OFFLOAD_PARAMS": "true",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "MEGATRON_LM_GRADIENT_CLIPPING": "0.01",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_SIZE": "2",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "TRANSFORMERS_SDPA_FORCE_GQA": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    TF32: "1",
}


def run(folder, *more):
    small = ["backbone=tiny:llama", "limit.train=40", "limit.eval=20", "train.epochs=1", "train.batch_size=8"]
    options = [part for item in (*small, "method.threshold=0.5") for part in ("-o", item)]
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "-d", str(folder), *options, "--device", "cpu", *more])
    return end.value.code


def contents(folder):
    names = ("scores.json", "selection.json", "metrics.json", "warmup/adapter_model.safetensors")
    return [(folder / name).read_bytes() for name in (*names, "adapter/adapter_model.safetensors")]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*NAMES, *LEFTOVERS):
        monkeypatch.delenv(name, raising=False)


def test_variables_of_launchers_change_no_byte_and_are_named(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "clean") == 0
    assert "ignored" not in capsys.readouterr().err
    for name, value in LEFTOVERS.items():
        monkeypatch.setenv(name, value)
    assert run(tmp_path / "dirty", "--compare", "lora") == 0
    assert contents(tmp_path / "dirty") == contents(tmp_path / "clean")
    assert {name: os.environ.get(name) for name in LEFTOVERS} == LEFTOVERS
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert told == (
        f"note: ignored: environment variables {', '.join(sorted(LEFTOVERS))}; the configuration alone decides what is computed"
    )


def launch(monkeypatch, **variables):
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", **variables}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_variables_of_a_launch_without_the_others_end_a_command_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    launch(monkeypatch)
    assert run(tmp_path / "run") == 2
    assert "MASTER_PORT is not set" in capsys.readouterr().err and not (tmp_path / "run").exists()
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setattr(processes, "ARRIVAL", timedelta(seconds=1))
    assert run(tmp_path / "run") == 2
    assert "the others did not join" in capsys.readouterr().err and not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun with one process
    assert run(tmp_path / "run") == 0
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


def test_one_of_several_processes_that_do_not_work_together_is_refused(tmp_path, monkeypatch, capsys):
    launch(monkeypatch)
    with pytest.raises(UserError, match="one of 2"), neutral_environment():
        pass
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--quick", "--only", "score", "--out", str(tmp_path / "bench")])
    assert end.value.code == 2 and "one of 2" in capsys.readouterr().err


def test_products_are_exact_while_a_run_works_and_as_they_were_after_it(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # as torch does by itself when it is imported under this variable
        monkeypatch.setenv(TF32, "1")
        with neutral_environment():
            assert torch.get_float32_matmul_precision() == "highest" and TF32 not in os.environ
        assert torch.get_float32_matmul_precision() == "high" and os.environ[TF32] == "1"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_environment_is_restored_after_a_failure(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="oh"), neutral_environment():
        assert "WORLD_SIZE" not in os.environ
        raise UserError("oh")
    assert os.environ["WORLD_SIZE"] == "two"


def test_a_dry_run_and_a_benchmark_are_neutral_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    for main, command in (
        (cli.main, ["reproduce", "table6", "--seeds", "0", "--dry-run", "-b", "tiny:bert", "--json"]),
        (benchmark.main, ["--quick", "--only", "score", "--out", str(tmp_path)]),
    ):
        with pytest.raises(SystemExit) as end:
            main([*command, "--device", "cpu"])
        told = capsys.readouterr()
        assert end.value.code == 0 and told.out
        assert "ignored: environment variable ACCELERATE_TORCH_DEVICE;" in told.err


MANY_SHAPES = """
import sys, torch
from lora_drop.training.environment import keep_few_shapes
from lora_drop.training.packing.frozen import product
if sys.argv[1:]:
    keep_few_shapes()
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
weight, x = torch.randn(128, 128), torch.randn(1000, 128)
product(x, weight)
before = memory()
for rows in range(100, 900):
    product(x[:rows], weight)
print(memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="there is no oneDNN")
def test_products_of_earlier_batches_are_not_kept_in_memory(monkeypatch):
    for name in CACHED_SHAPES:
        monkeypatch.delenv(name, raising=False)
    grown = [
        int(subprocess.run([sys.executable, "-c", MANY_SHAPES, *few], capture_output=True, check=True).stdout)
        for few in ([], ["few"])
    ]
    assert grown[1] < grown[0] / 2


def test_a_number_of_kept_products_that_the_user_has_set_stands(monkeypatch):
    for name in CACHED_SHAPES:
        monkeypatch.setenv(name, "7")
    keep_few_shapes()
    assert all(os.environ[name] == "7" for name in CACHED_SHAPES)
