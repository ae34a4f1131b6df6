import dataclasses
import math

import pytest
import yaml

from lora_drop.config.explained import explained
from lora_drop.config.files import OTHERS, config_folders, read_yaml
from lora_drop.config.identity import config_hash, to_dict
from lora_drop.config.loading import from_dict, load_config
from lora_drop.config.schema import Config
from lora_drop.config.strict import describe, flatten
from lora_drop.errors import UserError
from lora_drop.registry import TASKS
from lora_drop.training.warmup import FEW_STEPS, warmup_settings

GLUE = ("rte", "mrpc", "stsb", "cola", "sst2", "qnli", "mnli", "qqp")


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config([], overrides)
    return str(caught.value)


def test_later_files_win_and_overrides_win_over_files(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 2, batch_size: 8}\n")
    (tmp_path / "b.yaml").write_text("train: {epochs: 3}\n")
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["train.learning_rate=5e-4"])
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate) == (3.0, 8, 5e-4)


def test_a_threshold_that_is_set_later_ends_a_budget(tmp_path):
    halves, mine = tmp_path / "halves.yaml", tmp_path / "mine.yaml"
    halves.write_text("method: {budget: 0.5, threshold: 0.7}\n")  # as a run directory says both
    mine.write_text("method: {threshold: 0.8}\n")
    assert load_config([halves]).method.budget == 0.5
    for later in (load_config([halves, mine]), load_config([halves], ["method.threshold=0.8"])):
        assert (later.method.threshold, later.method.budget) == (0.8, None)
    assert load_config([mine], flags={"method.budget": 0.4}).method.budget == 0.4
    with pytest.raises(UserError, match="exclude each other"):
        load_config(overrides=["method.threshold=0.8"], flags={"method.budget": 0.5})


def test_all_errors_are_shown_at_once_with_key_value_and_remedy():
    text = message("train.epoch=3", "method.policy=treshold", "method.threshold=1.5", "train.learning_rate=abc", "seed")
    assert "5 errors" in text
    assert "train.epoch: no such key. Did you mean 'train.epochs'?" in text
    assert "method.policy = 'treshold'" in text and "Did you mean 'threshold'?" in text
    assert "method.threshold = 1.5: must be in the range 0 < value ≤ 1" in text
    assert "train.learning_rate = 'abc': must be a number" in text
    assert "'seed' is not of the form key=value" in text
    assert "'=3' is not of the form key=value" in message("=3")


def test_names_of_task_and_method_are_checked_with_the_rest():
    text = message("task=rtee", "method.name=lorra", "train.epochs=0")
    assert "Did you mean 'rte'" in text and "Did you mean 'lora'" in text and "train.epochs = 0" in text


def test_a_key_in_the_wrong_section_is_found():
    assert "learning_rate: no such key. Did you mean 'train.learning_rate'?" in message("learning_rate=1")


@pytest.mark.parametrize(
    "override",
    [
        "train.batch_size=1.5",
        "method.share=1",
        "sample.ratio=nan",
        "train=3",
        "method.target_projections=[1]",
        "seed=4294967296",
        "device=cuda:x",
    ],
)
def test_wrong_types_are_errors(override):
    assert override.split("=")[0] in message(override)


def test_no_such_file_names_a_near_one():
    with pytest.raises(UserError, match="Did you mean 'glue/rte'"):
        load_config(["glue/rtee"])


def test_broken_yaml_names_the_file(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"x\.yaml is not readable YAML"):
        load_config([tmp_path / "x.yaml"])


def test_a_stored_configuration_reads_back_equal():
    config = load_config([], ["method.target_projections=[query]", "limit.train=5"])
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    "text",
    ["Question: {question}\nAnswer: ", "a:\n\n  b: {x}\n", "# no comment\n- {x}", "\u0085x: 😀\n" * 9, " " * 200],
)
def test_a_text_of_several_lines_is_printed_as_it_is(text):
    """Its lines look like keys, comments and items."""
    config = load_config([], ["data.path=x.csv", f"data.template={text}", f"data.label={text}"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, text=(text, text)))
    assert from_dict(yaml.safe_load(explained(config))) == config
    assert explained(config).count("  # The text that is read, with columns in braces") == 1


def test_identity_leaves_out_where_a_run_happens():
    config = Config()
    assert config_hash(dataclasses.replace(config, data_dir="/elsewhere", device="cpu")) == config_hash(config)
    saved = dataclasses.replace(config.train, save_steps=7, logging_steps=3)
    assert config_hash(dataclasses.replace(config, train=saved)) == config_hash(config)
    assert config_hash(dataclasses.replace(config, seed=1)) != config_hash(config)


def test_every_field_has_a_help_text():
    def check(cls: type) -> None:
        for item in dataclasses.fields(cls):
            assert describe(cls).get(item.name), f"{cls.__name__}.{item.name} has no docstring"
            if dataclasses.is_dataclass(item.default):
                check(type(item.default))

    check(Config)
    assert "method.threshold" in flatten(Config)


def test_every_packaged_configuration_is_valid():
    names = [
        str(path.relative_to(folder).with_suffix(""))
        for folder in config_folders()
        for path in folder.rglob("*.yaml")
        if path.parent.name not in OTHERS
    ]
    assert "glue/rte" in names
    for name in names:
        load_config([name])


def test_glue_batch_sizes_are_the_totals_of_the_published_scripts():
    totals = {task: load_config([f"glue/{task}"]).train.batch_size for task in ("cola", "rte", "mrpc", "qnli")}
    assert totals == {"cola": 32 * 2, "rte": 32 * 8, "mrpc": 16 * 8, "qnli": 32 * 8}


def test_every_packaged_warm_up_has_steps_enough():
    """The paper's 3 epochs of a tenth of RTE are 3 steps of the published batch."""
    names = [f"{folder}/{task}" for folder in ("glue", "glue-large") for task in GLUE]
    for name in [*names, "nlg/e2e", "nlg/dart", "nlg/dialogsum", "toy/toy-nli", "toy/toy-nlg", "demo"]:
        config = load_config([name])
        rows = config.limit.train or TASKS.get(config.task).official_rows["train"]
        steps = math.ceil(round(rows * config.sample.ratio) / warmup_settings(config).batch_size) * config.warmup.epochs
        assert steps >= FEW_STEPS, (name, steps)
        assert config.warmup.epochs == 3 or name == "demo"


def test_generation_configurations_are_the_published_scripts_and_fit_a_cpu_with_the_overlay():
    for task in ("e2e", "dart", "dialogsum"):
        whole = load_config([f"nlg/{task}"])
        assert (whole.task, whole.backbone) == (task, "meta-llama/Llama-2-7b-hf")
        assert (whole.train.learning_rate, whole.train.batch_size, whole.train.select_epoch) == (2e-4, 8, "last")
        assert (whole.generation.num_beams, whole.generation.length_penalty) == (10, 0.8)
        assert whole.generation.no_repeat_ngram_size == (0 if task == "dialogsum" else 4)
        assert whole.method.rank == (16 if task == "dialogsum" else None)
        assert whole.generation.max_new_tokens < whole.train.max_length
        small = load_config([f"nlg/{task}", "smollm2-cpu"])
        assert (small.task, small.backbone, small.generation.num_beams) == (task, "packaged:smollm2-135m", 1)
        assert small.train.warmup_steps is None and small.train.precision == "fp32"


def test_what_is_read_from_a_file_is_the_readers_own(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 1}")
    read_yaml(path)["train"]["epochs"] = 2  # as a grid does, which lays the keys of its rows over it
    assert read_yaml(path) == {"train": {"epochs": 1}}
    path.write_text("train: {epochs: 3}")
    assert read_yaml(path) == {"train": {"epochs": 3}}
