"""The configuration as frozen dataclasses. The docstring under each field is its help text (`lora-drop config` prints it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drop.config.strict import checked, fraction, one_of, portion, positive
from lora_drop.pruning.selection import POLICIES

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class SampleConfig:
    """Stage 1, the stratified sample."""

    ratio: float = portion(0.1)
    """Share of the training set that is sampled, per stratum (the paper's sample ratio α = 0.1)."""


@dataclass(frozen=True)
class WarmupConfig:
    """Stage 2, the warm-up LoRA whose output is scored."""

    epochs: float = positive(3.0)
    """Passes over the sample (the paper: 3)."""
    steps: int | None = positive(None)
    """Instead of epochs: exactly so many optimizer steps, whatever the size of the sample; empty: warmup.epochs
    decides."""
    batch_size: int | None = positive(None)
    """TOTAL examples per optimizer step of the warm-up (the paper states none); empty: the same as train.batch_size."""
    learning_rate: float | None = positive(None)
    """Learning rate at the first step of the warm-up, which has no rise; empty: the same as train.learning_rate."""
    adapter: str | None = None
    """Instead of a warm-up: score this LoRA, trained elsewhere (a PEFT adapter's folder, or a run directory)."""


@dataclass(frozen=True)
class ScoreConfig:
    """The criterion of the importances, and extras kept beside them."""

    criterion: str = "output"
    """LoRAs are scored by this: output (the paper), output_relative, gradient, fisher, activation, weight or random."""
    compare: tuple[str, ...] | None = None
    """Also score the same warm-up by these criteria, and say how far all agree, in criteria.json and criteria.png; empty:
    by none."""
    norms: bool = False
    """Keep the value of each example (‖ΔW x‖² for output) in norms.json, for the distributions of the paper's Figures 2
    and 4."""
    bootstrap: int = checked(0, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """Resample the examples so many times: confidence intervals and how often each layer is retained, in
    stability.json."""
    trained: bool = False
    """Also score the trained adapter on the sample, in scores_trained.json (the paper's Figures 7 and 8)."""


@dataclass(frozen=True)
class MethodConfig:
    """The method and its hyper-parameters."""

    name: str = "lora_drop"
    """The method; `lora-drop params` lists them."""
    rank: int | None = positive(None)
    """Rank r of every low-rank pair; empty: the method's own (8 for LoRA and LoRA-drop, 512 VeRA, 56 Tied-LoRA)."""
    alpha: float | None = positive(None)
    """LoRA's scaling numerator: ΔW = alpha/rank · B A; empty: 2 · rank, as in microsoft/LoRA's GLUE scripts (r 8, alpha
    16)."""
    dropout: float = fraction(0.0)
    """Dropout on the input of the low-rank pair (microsoft/LoRA's GLUE scripts: 0)."""
    target_projections: tuple[str, ...] = ("query", "value")
    """Projections that get a LoRA: query, key, value, qkv, the end of a linear module's name (output.dense), or
    all-linear."""
    threshold: float = portion(0.9)
    """T: layers are retained, most important first, until their importances sum to T (the paper: 0.9)."""
    budget: float | None = portion(None)
    """Instead of a threshold: the largest T whose parameters are at most this share of plain LoRA's. A threshold that is
    set later, on the command line say, ends it."""
    policy: str = one_of("threshold", *POLICIES)
    """Which layers keep their LoRA: the most important (threshold), or as many of the least important (inverse),
    random, last (top), or first (bottom)."""
    share: bool = True
    """Low-importance layers share one LoRA per projection (true) or have none (false, the ablation "w/o share")."""
    keep_ratio: float = portion(0.5)
    """Sparse Adapter: share of the adapter weights that is kept."""


@dataclass(frozen=True)
class OwnMethodConfig(MethodConfig):
    """The configuration of a method that declares hyper-parameters of its own (`Method.options`).

    It is a class of its own so that the configurations of all other methods, and what is known by their digests, have
    no such key.
    """

    options: Any = None
    """The method's own hyper-parameters: an instance of the dataclass that it declares."""


@dataclass(frozen=True)
class TrainConfig:
    """Stage 4, and everything of the warm-up that WarmupConfig does not say."""

    epochs: float = positive(5.0)
    """Passes over the training set."""
    learning_rate: float = positive(5e-4)
    """Peak learning rate of AdamW."""
    head_learning_rate: float | None = positive(None)
    """That of the task's head, in the warm-up, too; empty: the same. A method that needs a high rate, as VeRA does, may not
    want it there."""
    batch_size: int = positive(32)
    """TOTAL examples per optimizer step, over all devices and accumulation steps."""
    device_batch_size: int | None = positive(None)
    """At most this many examples at a time on one device; empty: all of its part of the batch. Accumulation
    is derived from it."""
    max_length: int = positive(128)
    """Longer inputs are truncated to this many tokens; of prompt and completion together, the prompt's beginning goes
    first."""
    warmup_ratio: float = fraction(0.06)
    """Share of the steps in which the learning rate rises from 0. (Stage 2's warm-up has no such rise.)"""
    warmup_steps: int | None = checked(None, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """Instead of a share: this many steps, at most half of all (Hu et al. on E2E: 500); empty: train.warmup_ratio
    decides."""
    weight_decay: float = checked(0.1, "a number ≥ 0", lambda value: value >= 0, minimum=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = checked(1.0, "a number ≥ 0", lambda value: value >= 0, minimum=0)
    """Gradients are clipped to this norm; 0 switches clipping off."""
    scheduler: str = one_of("linear", "linear", "cosine", "constant", "constant_with_warmup")
    """Learning-rate schedule after the rise."""
    label_smoothing: float = fraction(0.0)
    """Share of each label's probability that is spread over all classes, or all tokens of the vocabulary (Hu et al. on
    E2E: 0.1)."""
    precision: str = one_of("fp32", "fp32", "bf16", "fp16")
    """Arithmetic of the forward and backward pass; weights that are trained stay in fp32."""
    products: str = one_of("auto", "auto", "stock")
    """fp32 products on a CPU: the fastest way that is as exact (auto), or torch's default (stock); run.json says what
    was done."""
    packing: str = one_of("auto", "auto", "never")
    """Compute without padding where the model allows it, and on a GPU from recordings (auto), or as the stock Trainer
    does (never); run.json says what was done."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    held_out: float = fraction(0.0)
    """Share of the training rows, stratified, that nothing is trained on; each epoch is also scored on them."""
    select_epoch: str = one_of("best", "best", "last", "held_out")
    """Which epoch's weights are kept: the best on eval.split (as the paper reports; optimistic), the last, or the best
    on the rows of train.held_out."""
    start_from: str | None = None
    """Start LoRA and LoRA-drop, and the warm-up, from this adapter: a run directory or a PEFT adapter's folder; empty:
    from B = 0."""
    save_steps: int | None = positive(None)
    """Also write a checkpoint every so many steps; empty: after each epoch."""
    report_to: tuple[str, ...] | None = checked(
        None, f"some of {', '.join(TRACKERS)}", lambda value: set(value) <= set(TRACKERS)
    )
    """Send losses and metrics of warm-up and training to these trackers: tensorboard, wandb, trackio, mlflow; empty: to
    none."""
    logging_steps: int | None = positive(None)
    """The trackers get the loss every so many steps of the training (and of each step of the warm-up); empty: after
    each epoch."""


@dataclass(frozen=True)
class EvalConfig:
    """Stage 5."""

    batch_size: int = positive(64)
    """Examples per forward pass."""
    split: str | None = None
    """Split that is evaluated; empty: test in E2E, DART and DialogSum, else validation. MNLI also has
    validation_matched and _mismatched."""


@dataclass(frozen=True)
class GenerationConfig:
    """Decoding of texts."""

    num_beams: int = positive(1)
    """Beams; 1 is greedy decoding."""
    max_new_tokens: int = positive(64)
    """Length limit of the generated text."""
    length_penalty: float = 1.0
    """Exponent of the length in beam search."""
    no_repeat_ngram_size: int = checked(0, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """N-grams of this size occur once; 0 switches the rule off."""


@dataclass(frozen=True)
class DataConfig:
    """Data of your own, instead of a task's. With `data.path` the task is `own`."""

    path: str | None = None
    """A csv, tsv, json, jsonl or parquet file, a folder with such files named train, validation and test, or
    org/name[:config][@revision] on the Hub."""
    split: str = "train"
    """The split that is trained on, of a folder or of the Hub."""
    text: tuple[str, ...] | None = None
    """The column that is read, two of them (a pair of texts), or a template such as "{title}: {body}"; empty: found."""
    label: str | None = None
    """The column that is predicted: names or whole numbers (classes), numbers with a fraction (regression), lists or
    a;b (several labels a row); for generation the text that is written; empty: found."""
    kind: str = one_of("auto", "auto", "classification", "regression", "multilabel", "generation")
    """The kind of task; auto: what the label's values are."""
    validation: float | str | None = None
    """The rows that are evaluated: a share of the training file (stratified), another file, or a split; empty: in a
    folder the split validation, else test; otherwise, and always on the Hub, 0.2 of the rows, at most 2,000."""
    metric: tuple[str, ...] | None = None
    """Metrics, that which chooses the best epoch first: accuracy, f1_macro, f1_micro, matthews; pearson, spearman;
    sacrebleu, rougeL, perplexity; empty: those that suit the kind."""
    template: str | None = None
    """The text that is read, with columns in braces ("{title}: {body}"); of generation, the prompt."""
    dataset_info: str | None = None
    """LLaMA-Factory's dataset_info.json; data.name says which of its data sets is meant."""
    name: str | None = None
    """The name of a data set in data.dataset_info."""

    @property
    def given(self) -> bool:
        """True if there are data of the user's own."""
        return self.path is not None or self.dataset_info is not None


@dataclass(frozen=True)
class LimitConfig:
    """Run on fewer rows. A limited run says so everywhere."""

    train: int | None = positive(None)
    """Use this many training rows, stratified; empty: all."""
    eval: int | None = positive(None)
    """Use this many evaluation rows, stratified; empty: all."""


@dataclass(frozen=True)
class Config:
    """One run, completely. Two runs with equal configurations (but for where they run) give equal results on a CPU."""

    task: str = "toy-nli"
    """The task; `lora-drop tasks` lists them."""
    backbone: str = "packaged:minilm-l6"
    """The pretrained model: a Hub id (or id@revision), a folder, packaged:NAME, shape:NAME (random weights) or
    tiny:NAME."""
    quantization: str = one_of("none", "none", "nf4")
    """Precision of the frozen weights: as they come (none), or 4 bits (nf4, as in QLoRA; needs CUDA and the extra
    qlora)."""
    seed: int = checked(
        0, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32, minimum=0, maximum=2**32 - 1
    )
    """Seed of the sample, the initial weights, the order of the rows and dropout."""
    data_dir: str | None = None
    """Folder with the official files, which must hold those of the task; empty: $LORA_DROP_DATA, else the Hub."""
    data_revision: str | None = None
    """Take the rows from this branch, tag or commit of the data set on the Hub; empty: from files, else what is cached,
    else the newest."""
    device: str = checked(
        "auto",
        "auto, cpu, cuda or mps (choose one of several GPUs with CUDA_VISIBLE_DEVICES)",
        lambda value: value in ("auto", "cpu", "cuda", "mps"),
        enum=["auto", "cpu", "cuda", "mps"],
    )
    """Where to compute; auto: the GPU if there is one."""
    offline: bool = False
    """Never ask the Hub; what is not on this machine is an error."""
    data: DataConfig = DataConfig()
    """Data of your own."""
    sample: SampleConfig = SampleConfig()
    """Stage 1."""
    warmup: WarmupConfig = WarmupConfig()
    """Stage 2."""
    score: ScoreConfig = ScoreConfig()
    """The criterion, and extras."""
    method: MethodConfig = MethodConfig()
    """The method and its hyper-parameters."""
    train: TrainConfig = TrainConfig()
    """Stage 4."""
    eval: EvalConfig = EvalConfig()
    """Stage 5."""
    generation: GenerationConfig = GenerationConfig()
    """Decoding."""
    limit: LimitConfig = LimitConfig()
    """Fewer rows."""
