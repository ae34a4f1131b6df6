"""The five stages on generation tasks, end to end, with a tiny decoder."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import randomise_b
from test_pipeline import Told

import lora_drop
from lora_drop.cli.perform import perform_stages
from lora_drop.config.loading import load_config
from lora_drop.config.schema import MethodConfig
from lora_drop.data.completions import encode_pairs, pair_collator
from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.models.backbones import load_model, load_tokenizer, locate
from lora_drop.pruning.adapters import loras
from lora_drop.pruning.sharing import ties
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Source

pytestmark = pytest.mark.slow

SMALL = [
    "task=toy-nlg",
    "backbone=tiny:llama",
    "limit.train=120",
    "limit.eval=40",
    "train.epochs=1",
    "train.learning_rate=0.01",
    "train.batch_size=8",
    "train.max_length=160",
    "train.select_epoch=last",
    "eval.batch_size=4",
    "generation.max_new_tokens=40",
    "method.threshold=0.5",
    "device=cpu",
]


def run(folder, *overrides, force=False, stages=("all",), compare=()):
    told = Told()
    summary = perform_stages(folder, load_config([], [*SMALL, *overrides]), list(stages), force, told, list(compare))
    return told, summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    run(folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("metrics.json", "predictions.jsonl")}


def test_all_artefacts_are_there_and_say_what_the_contract_says(finished):
    scores, metrics, manifest = (read_json(finished / f"{name}.json") for name in ("scores", "metrics", "run"))
    assert (metrics["task"], metrics["split"], metrics["examples"]) == ("toy-nlg", "validation", 40)
    assert metrics["primary"] == "sacrebleu" and metrics["signatures"].keys() == metrics["metrics"].keys()
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and all(row.keys() == {"id", "prediction", "references"} for row in rows)
    numbers = [int(row["id"].removeprefix("validation-")) for row in rows]
    assert numbers == sorted(numbers)
    trained = manifest["stages"]["train"]
    assert trained["trainable_parameters"]["head"] == 0 and trained["kept_epoch"] == 1
    assert [entry.keys() for entry in trained["epochs"]] == [{"epoch", "loss"}]  # nothing was generated in between
    assert {row["name"].rsplit(".", 1)[-1] for row in scores["modules"]} == {"q_proj", "v_proj"}


def test_projections_of_different_widths_are_scored_and_tied(finished):
    model, tokenizer = lora_drop.load_run(finished, device="cpu")
    widths = {len(lora.up) for lora in loras(model).values()}
    assert widths == {32, 16}  # two of four key/value heads
    selection = lora_drop.Selection.from_json(read_json(finished / "selection.json"))
    assert len(ties(model)) == sum(len(layers.shared) > 1 for layers in selection.projections.values()) > 0
    inputs = tokenizer(["animal[dog]\n\nIn words:\n", "x"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"][1, 0] == 0  # ready to generate: padded on the left
    with torch.no_grad():
        assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_nothing_is_repeated_unless_its_inputs_changed(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    assert run(folder)[0].skipped == ["sample", "score", "select", "picture", "train", "eval"]
    assert run(folder, "eval.split=validation")[0].done == []
    assert run(folder, "generation.num_beams=2")[0].done == ["eval"]
    assert run(folder, "limit.eval=20")[0].done == ["eval"]  # no epoch was chosen on these rows: the adapter stands


@pytest.mark.parametrize("name", ["full", "lora", "sparse_adapter", "vera", "tied_lora"])
def test_every_method_learns_to_write(name, tmp_path):
    told, summary = run(tmp_path / name, f"method.name={name}", "limit.train=40", "limit.eval=4")
    assert told.done == ["train", "eval"] and summary.results[0]["method"] == METHODS.get(name).title
    again, _ = lora_drop.load_run(tmp_path / name, device="cpu")
    assert not again.training


def test_the_best_epoch_is_chosen_by_generating(tmp_path):
    run(tmp_path / "run", "train.select_epoch=best", "train.epochs=2", "limit.eval=8", "method.name=lora")
    trained = read_json(tmp_path / "run" / "run.json")["stages"]["train"]
    assert all("sacrebleu" in entry for entry in trained["epochs"]) and trained["select_epoch"] == "best"
    best = max(trained["epochs"], key=lambda entry: entry["sacrebleu"])
    kept = next(entry for entry in trained["epochs"] if entry["epoch"] == trained["kept_epoch"])
    assert kept["sacrebleu"] == best["sacrebleu"]
    metrics = read_json(tmp_path / "run" / "metrics.json")["metrics"]
    assert metrics["sacrebleu"] == pytest.approx(kept["sacrebleu"])


def test_cut_texts_are_counted_by_kind(tmp_path):
    told, _ = run(
        tmp_path / "run", "train.max_length=36", "generation.max_new_tokens=8", "method.name=lora", "limit.train=40"
    )
    cut = [notice for notice in told.notices if "cut at" in notice]
    assert ["beginning" in notice for notice in cut] == [True, False, True]
    assert "training completions alone are longer" in cut[1] and "evaluation prompts" in cut[2]


def test_an_encoder_cannot_write(tmp_path):
    with pytest.raises(UserError, match=r"is an encoder .bert.: it cannot continue a text"):
        run(tmp_path / "run", "backbone=tiny:bert", "method.name=lora")


def test_a_killed_evaluation_continues_and_gives_the_same_bytes(finished, tmp_path):
    """SIGKILL after the second batch of ten; the second start generates the rest."""
    folder = tmp_path / "killed"
    shutil.copytree(finished, folder)
    command = [sys.executable, "-m", "lora_drop.cli.app", "eval", "-d", str(folder), "-q"]
    process = subprocess.Popen([*command, "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = folder / "checkpoints" / "eval" / "predictions.jsonl"
    deadline = time.monotonic() + 200
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'["a line that was cut o')
    (folder / "metrics.json").unlink()
    (folder / "predictions.jsonl").unlink()
    assert 2 <= written.count(b"\n") < 10
    subprocess.run(command, check=True, timeout=200)
    assert results(folder) == results(finished)
    assert not (folder / "checkpoints" / "eval").exists()


def test_a_run_through_the_command_line(tmp_path):
    options = [part for item in SMALL for part in ("-o", item)]
    command = [sys.executable, "-m", "lora_drop.cli.app", "run", "-d", str(tmp_path / "run"), *options, "--json"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert process.returncode == 0, process.stderr
    (row,) = json.loads(process.stdout.splitlines()[-1])["results"]
    assert row["method"] == "LoRA-drop" and row["n"] == 40 and (row["epoch"], row["select_epoch"]) == (1, "last")
    assert "Warning" not in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["generation.max_new_tokens=160"], "leaves no room for a prompt"),
        (["task=stsb", "train.label_smoothing=0.1"], "predicts a number"),
        (["train.head_learning_rate=1e-3"], "is for a classifier's head"),
        (["train.held_out=0.1"], "several of its rows may have the same prompt"),
        (["quantization=nf4"], "is for backbones from the Hub or a folder"),
        (["quantization=nf4", "method.name=full"], "needs a method that is a PEFT adapter, and full is not one"),
        (["quantization=nf4", "backbone=org/name"], "needs an NVIDIA GPU"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_done(overrides, text, tmp_path):
    with pytest.raises(UserError, match=text):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "config.yaml").exists()


AWKWARD = [
    "",
    " \n",
    "#Person1#: 😀 naïve\r\n#Person2#: ok\r\n",
    "#Person1#: שלום עולם",
    "</s> <pad> <s>",
    "word " * 5000,
]


def test_awkward_dialogues_and_meanings_run_through(tmp_path):
    """Empty, emoji, right to left, line ends of Windows, 5,000 words: learned from and written for."""
    for name, keys in (("train", ["summary"]), ("test", ["summary1", "summary2", "summary3"])):
        path = tmp_path / "data" / "dialogsum" / f"dialogsum.{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"dialogue": text} | dict.fromkeys(keys, "A talk. שלום 😀") for text in AWKWARD * 2]
        path.write_text("".join(json.dumps(row) + "\r\n" for row in rows), newline="")
    for file in ("trainset.csv", "testset_w_refs.csv"):
        path = tmp_path / "data" / "e2e-dataset" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('mr,ref\r\n,A place.\r\n"name[مطعم], area[😀]",A place.\r\n', encoding="utf-8", newline="")
    for task, count in (("dialogsum", 12), ("e2e", 2)):
        asked = (f"task={task}", f"data_dir={tmp_path / 'data'}", "method.name=lora", "limit.train=12")
        told, summary = run(tmp_path / task, *asked)
        assert told.done == ["train", "eval"] and summary.results[0]["n"] == count
        assert summary.results[0]["split"] == "test"  # this task's own, as nothing else is asked for
        if task == "dialogsum":
            cut = [notice for notice in told.notices if "cut at" in notice]
            assert cut[0].startswith("2 of 12 training prompts") and len(cut) == 2


def test_padding_with_the_end_of_text_does_not_move_a_score():
    """The score of a padded batch is that of its rows one by one, where the padding is also the last token of each row."""
    located = locate("tiny:llama")
    tokenizer = load_tokenizer(located, causal=True)
    tokenizer.pad_token = tokenizer.eos_token
    task = TASKS.get("toy-nlg")
    model = METHODS.get("lora").build(load_model(located, task, 0, tokenizer), MethodConfig(), 0, None)
    randomise_b(model, 0)
    encoded, _ = encode_pairs(task.load(Source(None), "train").select(range(6)), tokenizer, 200)
    collate = pair_collator(tokenizer)
    together = lora_drop.score(model, [collate(list(encoded))])
    apart = lora_drop.score(model, [collate([row]) for row in encoded])
    assert together.tokens == apart.tokens == sum(map(len, encoded["input_ids"]))
    assert [row.score for row in together.rows] == pytest.approx([row.score for row in apart.rows], rel=1e-4)
