"""The configuration as frozen dataclasses.

The docstring under each field is its help text, which `lora-drop config` prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drop.config.strict import checked, fraction, one_of, portion, positive
from lora_drop.pruning.selection import POLICIES

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class SampleConfig:
    """Stage 1: the stratified sample."""

    ratio: float = portion(0.1)
    """Share of the training set that is sampled, per stratum (the paper's sample ratio α = 0.1)."""


@dataclass(frozen=True)
class WarmupConfig:
    """Stage 2: the warm-up LoRA whose output is scored."""

    epochs: float = positive(3.0)
    """Passes over the sample (the paper: 3)."""
    steps: int | None = positive(None)
    """Exactly this many optimizer steps instead of epochs, for any size of the sample; empty: warmup.epochs decides."""
    batch_size: int | None = positive(None)
    """TOTAL examples per optimizer step of the warm-up (not stated in the paper); empty: same as train.batch_size."""
    learning_rate: float | None = positive(None)
    """Learning rate at the first step of the warm-up (it does not rise from 0); empty: same as train.learning_rate."""
    adapter: str | None = None
    """Score this trained LoRA instead of running a warm-up (a PEFT adapter's folder, or a run directory)."""


@dataclass(frozen=True)
class ScoreConfig:
    """The criterion of the importances, and optional extra results."""

    criterion: str = "output"
    """Criterion that scores the LoRAs: output (the paper), output_relative, gradient, fisher, activation, weight or
    random."""
    compare: tuple[str, ...] | None = None
    """Further criteria that also score the same warm-up; criteria.json and criteria.png show how far all agree; empty:
    none."""
    norms: bool = False
    """Save the value of each example (‖ΔW x‖² for output) in norms.json, for the distributions of the paper's Figures 2
    and 4."""
    bootstrap: int = checked(0, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """Resample the examples this many times, for confidence intervals and how often each layer is retained
    (stability.json)."""
    trained: bool = False
    """Also score the trained adapter on the sample (scores_trained.json; the paper's Figures 7 and 8)."""


@dataclass(frozen=True)
class MethodConfig:
    """The method and its hyper-parameters."""

    name: str = "lora_drop"
    """The method; `lora-drop params` lists them."""
    rank: int | None = positive(None)
    """Rank r of every low-rank pair; empty: the method's default (8 for LoRA and LoRA-drop, 512 for VeRA, 56 for
    Tied-LoRA)."""
    alpha: float | None = positive(None)
    """Numerator of LoRA's scaling, ΔW = alpha/rank · B A; empty: 2 · rank, as in microsoft/LoRA's GLUE scripts (r 8,
    alpha 16)."""
    dropout: float = fraction(0.0)
    """Dropout on the input of the low-rank pair (microsoft/LoRA's GLUE scripts: 0)."""
    target_projections: tuple[str, ...] = ("query", "value")
    """Projections that get a LoRA: query, key, value, qkv, the end of a linear module's name (output.dense), or
    all-linear."""
    threshold: float = portion(0.9)
    """T: layers are retained, most important first, until their importances sum to T (the paper: 0.9)."""
    budget: float | None = portion(None)
    """Use the largest T whose parameters are at most this share of plain LoRA's, instead of a threshold. A threshold
    that is set later, such as on the command line, removes the budget."""
    policy: str = one_of("threshold", *POLICIES)
    """Layers that keep their LoRA: the most important (threshold), or the same number of the least important (inverse),
    random, last (top), or first (bottom) layers."""
    share: bool = True
    """Low-importance layers share one LoRA per projection (true) or have none (false, the ablation "w/o share")."""
    keep_ratio: float = portion(0.5)
    """Sparse Adapter: share of the adapter weights to keep."""


@dataclass(frozen=True)
class OwnMethodConfig(MethodConfig):
    """The configuration of a method that declares its own hyper-parameters (`Method.options`).

    It is a separate class so that the configurations of all other methods have no such key and their digests do not
    change.
    """

    options: Any = None
    """The method's own hyper-parameters, an instance of the dataclass that it declares."""


@dataclass(frozen=True)
class TrainConfig:
    """Stage 4, and the settings of the warm-up that are not in WarmupConfig."""

    epochs: float = positive(5.0)
    """Passes over the training set."""
    learning_rate: float = positive(5e-4)
    """Peak learning rate of AdamW."""
    head_learning_rate: float | None = positive(None)
    """Learning rate of the task's head, also in the warm-up; empty: the same. Methods with a high learning rate, such
    as VeRA, may need a lower one for the head."""
    batch_size: int = positive(32)
    """TOTAL examples per optimizer step, over all devices and accumulation steps."""
    device_batch_size: int | None = positive(None)
    """Most examples at a time on one device, which determines the accumulation steps; empty: the device's whole part of
    the batch."""
    max_length: int = positive(128)
    """Longer inputs are truncated to this many tokens; if prompt and completion are too long together, the beginning of
    the prompt is cut first."""
    warmup_ratio: float = fraction(0.06)
    """Share of the steps in which the learning rate rises from 0. (Stage 2's warm-up has no such rise.)"""
    warmup_steps: int | None = checked(None, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """This many steps instead of a share, at most half of all (Hu et al. on E2E: 500); empty: train.warmup_ratio
    decides."""
    weight_decay: float = checked(0.1, "a number ≥ 0", lambda value: value >= 0, minimum=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = checked(1.0, "a number ≥ 0", lambda value: value >= 0, minimum=0)
    """Gradients are clipped to this norm; 0 disables clipping."""
    scheduler: str = one_of("linear", "linear", "cosine", "constant", "constant_with_warmup")
    """Learning-rate schedule after the rise."""
    label_smoothing: float = fraction(0.0)
    """Share of each label's probability that is spread over all classes, or all tokens of the vocabulary (Hu et al. on
    E2E: 0.1)."""
    precision: str = one_of("fp32", "fp32", "bf16", "fp16")
    """Precision of the forward and backward pass; trained weights stay in fp32."""
    products: str = one_of("auto", "auto", "stock")
    """Matrix products on a CPU: by the fastest equally exact way (auto), or by torch's default (stock);
    run.json records the choice."""
    packing: str = one_of("auto", "auto", "never")
    """Compute without padding if the model allows it, and on a GPU by replaying CUDA graphs (auto), or like the stock
    Trainer (never); run.json records the choice."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them: less memory, a third more time."""
    held_out: float = fraction(0.0)
    """Share of the training rows, stratified, that is excluded from training; each epoch is also scored on them."""
    select_epoch: str = one_of("best", "best", "last", "held_out")
    """Epoch whose weights are kept: the best on eval.split (as the paper reports; optimistic), the last, or the best on
    the rows of train.held_out."""
    start_from: str | None = None
    """Start LoRA and LoRA-drop, and the warm-up, from this adapter: a run directory or a PEFT adapter's folder; empty:
    from B = 0."""
    save_steps: int | None = positive(None)
    """Also write a checkpoint every this many steps; empty: only after each epoch."""
    report_to: tuple[str, ...] | None = checked(
        None, f"some of {', '.join(TRACKERS)}", lambda value: set(value) <= set(TRACKERS)
    )
    """Trackers that get the losses and metrics of warm-up and training: tensorboard, wandb, trackio, mlflow; empty:
    none."""
    logging_steps: int | None = positive(None)
    """Training steps between losses sent to the trackers (in the warm-up, every step is sent); empty: after each
    epoch."""


@dataclass(frozen=True)
class EvalConfig:
    """Stage 5: evaluation."""

    batch_size: int = positive(64)
    """Examples per forward pass."""
    split: str | None = None
    """Evaluation split; empty: test for E2E, DART and DialogSum, else validation. MNLI also has validation_matched and
    _mismatched."""


@dataclass(frozen=True)
class GenerationConfig:
    """Decoding of generated texts."""

    num_beams: int = positive(1)
    """Number of beams; 1 is greedy decoding."""
    max_new_tokens: int = positive(64)
    """Length limit of the generated text."""
    length_penalty: float = 1.0
    """Exponent of the length in beam search."""
    no_repeat_ngram_size: int = checked(0, "an integer ≥ 0", lambda value: value >= 0, minimum=0)
    """N-grams of this size occur only once; 0 disables the rule."""


@dataclass(frozen=True)
class DataConfig:
    """Your own data, instead of a task's. With `data.path` the task is `own`."""

    path: str | None = None
    """A csv, tsv, json, jsonl or parquet file, a folder with such files named train, validation and test, or
    org/name[:config][@revision] on the Hub."""
    split: str = "train"
    """Training split of a folder or of a data set on the Hub."""
    text: tuple[str, ...] | None = None
    """Input column, two columns (a pair of texts), or a template such as "{title}: {body}"; empty: detected."""
    label: str | None = None
    """Column to predict: names or whole numbers (classes), numbers with a fraction (regression), lists or a;b (several
    labels per row); for generation, the text to write; empty: detected."""
    kind: str = one_of("auto", "auto", "classification", "regression", "multilabel", "generation")
    """The kind of task; auto: detected from the label's values."""
    validation: float | str | None = None
    """Evaluation rows: a share of the training file (stratified), another file, or a split; empty: the split validation
    of a folder, else its split test; without these, and always on the Hub, 0.2 of the rows, at most 2,000."""
    metric: tuple[str, ...] | None = None
    """Metrics, of which the first selects the best epoch: accuracy, f1_macro, f1_micro, matthews; pearson, spearman;
    sacrebleu, rougeL, perplexity; empty: those that suit the kind."""
    template: str | None = None
    """The text that is read, with columns in braces ("{title}: {body}"); for generation, the prompt."""
    dataset_info: str | None = None
    """LLaMA-Factory's dataset_info.json; data.name names one of its data sets."""
    name: str | None = None
    """Name of a data set in data.dataset_info."""

    @property
    def given(self) -> bool:
        """True if the configuration names the user's own data."""
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
    """The complete configuration of a run. On a CPU, runs that differ only in where they run give equal results."""

    task: str = "toy-nli"
    """The task; `lora-drop tasks` lists them."""
    backbone: str = "packaged:minilm-l6"
    """The pretrained model: a Hub id (or id@revision), a folder, packaged:NAME, shape:NAME (random weights) or
    tiny:NAME."""
    quantization: str = one_of("none", "none", "nf4")
    """Precision of the frozen weights: unchanged (none), or 4 bits (nf4, as in QLoRA; needs CUDA and the extra
    qlora)."""
    seed: int = checked(
        0, "an integer from 0 to 4294967295", lambda value: 0 <= value < 2**32, minimum=0, maximum=2**32 - 1
    )
    """Seed of the sample, the initial weights, the order of the rows and dropout."""
    data_dir: str | None = None
    """Folder with the official files, which must include those of the task; empty: $LORA_DROP_DATA, else the Hub."""
    data_revision: str | None = None
    """Read the rows from this branch, tag or commit of the data set on the Hub; empty: from files, else the cached
    revision, else the newest."""
    device: str = checked(
        "auto",
        "auto, cpu, cuda or mps (choose one of several GPUs with CUDA_VISIBLE_DEVICES)",
        lambda value: value in ("auto", "cpu", "cuda", "mps"),
        enum=["auto", "cpu", "cuda", "mps"],
    )
    """Device to compute on; auto: the GPU if there is one."""
    offline: bool = False
    """Never contact the Hub; anything missing on this machine is an error."""
    data: DataConfig = DataConfig()
    """Your own data."""
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
