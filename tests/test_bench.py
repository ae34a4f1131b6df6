"""`python -m bench` as it is called, as small as it can be. Nothing here says how fast anything is."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bench import __main__ as benchmark
from bench import comparisons, training
from bench.commands import measure_commands
from bench.comparisons import GROUPED_16, OURS, OURS_16, STOCK, measure_scoring, measure_training
from bench.figure import speeds
from bench.parts import quantizable
from bench.subject import Settings, Subject
from bench.table import CLAIMS, Claim, printed
from bench.training import Evidence, Training, UnfairComparison, Variant, check_fair, grouped, note, padded

from lora_drop.data.batches import row_lengths
from lora_drop.errors import UserError
from lora_drop.progress import SILENT
from lora_drop.pruning.adapters import loras

SETTINGS = Settings(rows=12, rounds=2, quick=True, offline=True)


@pytest.fixture(scope="module")
def subject():
    return Subject(SETTINGS, SILENT, "tiny:bert", "toy-nli", **{"train.batch_size": 4, "train.max_length": 128})


def bench(folder, *arguments):
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--out", str(folder), "--quiet", *arguments])
    return end.value.code


@pytest.mark.slow
def test_a_quick_benchmark_measures_what_it_claims(tmp_path, capsys):
    assert bench(tmp_path, "--quick", "--only", "small,base,score") == 0
    (file,) = tmp_path.glob("*-quick.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert file.with_suffix(".png").stat().st_size > 0
    for row in result["claims"]:
        if row["part"] in ("small", "base", "score"):
            assert 0 < row["low"] <= row["median"] <= row["high"], row["title"]
        else:
            assert row["not_measured"] == ("not asked for" if row["part"] == "commands" else "needs --device cuda")
    assert result["machine"]["cores"] == os.cpu_count() and result["machine"]["versions"]["torch"] == torch.__version__

    small = result["parts"]["small"]
    seconds = {name: values[0] for name, values in small["rounds"]["seconds"].items()}
    numbers = {name: found["median"] for name, found in small["numbers"].items()}
    assert numbers["ours bf16 / stock fp32"] == pytest.approx(seconds["stock fp32"] / seconds["ours bf16"])
    reached = small["subject"]["flops"] * seconds["products bf16"] / seconds["ours bf16"]
    assert numbers["ours bf16, of the product"] == pytest.approx(reached)
    told = capsys.readouterr().out
    assert result["machine"]["cpu"] in told and "not measured: needs --device cuda" in told and "QUICK" in told


@pytest.mark.slow
def test_the_share_is_that_of_the_stages_of_a_real_run(subject):
    found = measure_commands(subject, rounds=1)
    spent = sum(found["seconds_of_stages"].values())
    assert found["numbers"]["share"]["median"] == pytest.approx(spent / (spent + found["seconds_of_training"]))
    assert list(found["seconds_of_stages"]) == ["sample", "score", "select"]
    assert found["numbers"]["select"]["median"] == found["rounds"]["seconds"]["select"][0] > 0


def test_a_precision_that_the_machine_lacks_is_not_measured(subject, monkeypatch):
    reason = "this CPU has no instructions for bf16"
    monkeypatch.setattr(comparisons, "why_slow", lambda device, precision: reason if precision == "bf16" else "")
    monkeypatch.setattr(subject, "settings", replace(SETTINGS, quick=False))
    trained = measure_training(subject, [STOCK, OURS, OURS_16], rounds=1)
    scored = measure_scoring(subject, rounds=1)
    found = {"small": trained, "score": scored}
    lost = [claim.row(found) for claim in CLAIMS if claim.part in found and "bf16" in claim.number]
    assert len(lost) == 5 and {row["not_measured"] for row in lost} == {reason}
    assert "ours fp32 / stock fp32" in trained["numbers"] and "score / forward fp32" in scored["numbers"]


def test_what_is_missing_is_marked_as_not_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_show", lambda result: results.append(result))
    results: list[dict] = []
    asked = ("--quick", "--only", "base,score", "--base-size", "packaged:mpnet-bases")
    assert bench(tmp_path, *asked) == 0
    rows = {(row["part"], row["number"]): row for row in results[0]["claims"]}
    assert "packaged:mpnet-bases" in rows["base", "ours bf16 / grouped bf16"]["not_measured"]
    assert rows["commands", "share"]["not_measured"] == "not asked for"
    assert "median" in rows["score", "score / forward fp32"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--only", "smal"], "Did you mean 'small'"),
        (["--only", "llama"], "not for --device cpu"),
        (["--only", "base", "--base-size", "tiny:berd"], "tiny:bert"),
        (["--only", "small", "--offline"], "LORA_DROP_DATA"),
    ],
)
def test_mistakes_say_what_to_do(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LORA_DROP_DATA", raising=False)
    assert bench(tmp_path, *arguments) == 2
    message = capsys.readouterr().err
    assert text in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_all_sides_do_the_same_work(subject):
    found = measure_training(subject, [STOCK, Variant("grouped"), OURS, Variant("ours", upper=True)], rounds=1)
    evidence = found["evidence"]
    assert {name: one["batches"] for name, one in evidence.items()} == dict.fromkeys(evidence, (4, 4, 4))
    assert len({one["rows"] for one in evidence.values()}) == 1 and {one["steps"] for one in evidence.values()} == {3}
    assert found["computed"]["ours fp32"].startswith("packed") and found["computed"]["stock fp32"] == "padded"


def test_of_two_epochs_the_second_is_measured_and_the_whole_call_is_kept(subject):
    found = measure_training(subject, [STOCK, Variant("grouped"), OURS], rounds=2, epochs=2)
    single = Training(subject, OURS)
    single()
    rounds = found["rounds"]
    assert found["epochs"] == 2 and len(found["evidence"]) == len(rounds["whole_calls"]) == 3
    for one in found["evidence"].values():
        assert one["batches"] == (4,) * 6 and one["steps"] == 6 and one["rows"] != single.evidence.rows
    for name, whole in rounds["whole_calls"].items():
        assert all(0 < second < call for second, call in zip(rounds["seconds"][name], whole, strict=True))
    for part, seconds in (("", rounds["seconds"]), (", whole call", rounds["whole_calls"])):
        ratios = [above / below for above, below in zip(seconds["stock fp32"], seconds["ours fp32"], strict=True)]
        assert found["numbers"][f"ours fp32 / stock fp32{part}"]["median"] == pytest.approx(sum(ratios) / 2)


@pytest.mark.parametrize("side", ["grouped", "ours"])
def test_the_second_epoch_begins_when_the_first_has_ended(subject, side, monkeypatch):
    """The clock of this test moves by one second in each forward pass, and only then."""
    passes, lora = [], subject.lora

    def counted(upper):
        model = lora(upper)
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        return model

    monkeypatch.setattr(subject, "lora", counted)
    monkeypatch.setattr(training, "now", lambda device: float(len(passes)))
    two = Training(subject, Variant(side), epochs=2)
    assert two() == 3 and two.whole_calls[0] >= 6  # ours also computes the trial, before the first epoch


def test_an_only_epoch_is_measured_with_its_setup(subject):
    found = measure_training(subject, [GROUPED_16, OURS_16], rounds=1)
    seconds, whole = found["rounds"]["seconds"], found["rounds"]["whole_calls"]
    assert len(whole) == 2 and {name: seconds[name] for name in whole} == whole
    assert not any("whole call" in name for name in found["numbers"])


@pytest.mark.parametrize(("keys", "what"), [({"limit.train": 11}, "rows"), ({"train.batch_size": 6}, "batches")])
def test_other_rows_or_batches_are_an_unfair_comparison(subject, keys, what):
    other = Subject(
        SETTINGS, SILENT, "tiny:bert", "toy-nli", **{"train.batch_size": 4, "train.max_length": 128, **keys}
    )
    one, two = Training(subject, STOCK), Training(other, OURS)
    one(), two()
    check_fair({"one": one.evidence, "other": replace(one.evidence, loss=1.04 * one.evidence.loss)})
    with pytest.raises(UnfairComparison, match=f"two and one differ in {what}"):
        check_fair({"one": one.evidence, "two": two.evidence})


@pytest.mark.parametrize(
    "change", [{"rows": "b"}, {"batches": (1, 4)}, {"steps": 3}, {"loss": 0.75}, {"loss": float("nan")}]
)
def test_any_difference_is_an_unfair_comparison(change):
    evidence = Evidence("a", (4, 4), 2, 0.7)
    with pytest.raises(UnfairComparison, match=f"ours and stock differ in .*{next(iter(change))}"):
        check_fair({"stock": evidence, "ours": replace(evidence, **change)})


def test_rows_are_known_without_their_padding():
    seen: list = []
    model = SimpleNamespace(training=True)
    note(
        model,
        {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])},
        seen,
    )
    note(model, {"input_ids": torch.tensor([[0, 0, 5, 6]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])}, seen)
    assert seen[0][0] == seen[1][0] != seen[0][1]


def test_stock_rows_are_padded_as_the_tokenizer_pads(subject):
    tokenizer, texts = subject.data.tokenizer, subject.data.train.rows
    rows = padded(subject.rows, tokenizer, 128)
    expected = tokenizer(
        list(texts["text"]), list(texts["text_pair"]), padding="max_length", max_length=128, truncation=True
    )
    for name, values in expected.items():
        assert list(rows[name]) == values
    assert list(rows["labels"]) == list(texts["label"])


def test_the_trainer_groups_as_in_the_whole_task(subject):
    one, whole = (grouped(subject.rows, 4, population, seed=0) for population in (12, 2490))
    assert sorted(map(tuple, whole["input_ids"])) == sorted(map(tuple, subject.rows["input_ids"]))
    assert row_lengths(whole) == sorted(subject.lengths, reverse=True) != row_lengths(one)


def test_all_variants_get_the_same_model(subject):
    one, other = subject.lora(), subject.lora()
    for (name, first), (_, second) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert first.equal(second), name


def test_lora_in_the_upper_half_leaves_the_lower_half_without(subject):
    layers, whole = subject.setup, loras(subject.lora())
    upper = loras(subject.lora(upper=True))
    assert layers.method.share and 2 * len(upper) == len(whole)
    assert list(upper) == list(whole)[len(upper) :]


def test_the_score_is_measured_padded_and_packed(subject):
    found = measure_scoring(subject, rounds=1)
    for precision in ("fp32", "bf16"):
        each = [found["numbers"][f"score / forward {precision} {way}"]["median"] for way in ("padded", "packed")]
        assert found["numbers"][f"score / forward {precision}"]["median"] == max(each)


@pytest.fixture
def decoder():
    return Subject(SETTINGS, SILENT, "tiny:llama", "toy-nlg", **{"limit.train": 8, "train.batch_size": 4})


def test_a_decoder_is_measured_on_its_tokens(decoder):
    found = measure_training(decoder, [GROUPED_16, OURS_16], rounds=2)
    rates = [found["subject"]["tokens"] / value for value in found["rounds"]["seconds"]["ours bf16"]]
    assert min(rates) <= found["numbers"]["ours bf16, tokens/s"]["median"] <= max(rates)
    assert set(found["evidence"]) == {"grouped bf16", "ours bf16"}


def test_four_bits_without_a_gpu_are_refused_before_weights_are_written(decoder):
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        quantizable(decoder)


def test_a_claim_knows_whether_it_is_reached():
    faster, cheaper = CLAIMS[0], next(claim for claim in CLAIMS if claim.at_most)
    assert [faster.state(value) for value in (3.9, 4.0, 4.8)] == ["below the floor", "floor reached", "aim reached"]
    assert [cheaper.state(value) for value in (1.05, 1.04, 1.0)] == ["below the floor", "floor reached", "aim reached"]
    assert Claim("without a goal", "small", "ours").state(1.0) == ""


def test_rows_are_printed_with_quartiles_or_with_the_reason():
    claim = Claim("speed", "small", "ours / stock, switched", 2.6, 3.2)
    part = {"numbers": {"ours / stock, switched": {"median": 3.0, "low": 2.5, "high": 3.1}}}
    assert printed(claim.row({"small": part})) == ["speed", "≥ 2.60", "≥ 3.20", "3.00 (2.50 to 3.10)", "floor reached"]
    absent = {"numbers": {}, "absent": {"stock, switched": "no switch"}}
    assert printed(claim.row({"small": absent}))[3] == "not measured: no switch"
    assert printed(claim.row({"small": {"not_measured": "no rows"}}))[3] == "not measured: no rows"


def test_the_figure_has_a_panel_for_each_model_that_was_trained():
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    part = {
        "subject": {"backbone": "a/b", "task": "rte", "tokens": 30, "rows": 2},
        "computed": {"stock fp32": "padded", "ours fp32": "packed"},
        "numbers": {"stock fp32, samples/s": spread, "ours fp32, samples/s": spread},
    }
    assert len(speeds({"small": part, "base": part, "score": {"computed": {}}}, "machine").axes) == 2
    assert speeds({"base": {"not_measured": "no rows"}}, "machine") is None
