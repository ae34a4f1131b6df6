"""Stage 4: a fresh model under the selection, trained on the whole training set."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.files import write_folder, write_json
from lora_drop.runs.stages.base import Stage, Values, Work, common_settings, digest_of, rows_of, training, weights
from lora_drop.runs.stages.evaluate import forget as forget_evaluation

if TYPE_CHECKING:
    from torch import nn

    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the settings of the training and of the method."""
    return {
        **common_settings(job),
        "limit": job.config.limit.train,
        "train": training(job, job.config.train),
        "method": [asdict(job.config.method), job.method.version],
    }


def inputs(job: Job) -> Values:
    """Return the identities of selection, rows and weights, and the settings of evaluations between epochs."""
    selection = digest_of(job, "selection.json", "select") if job.selects else None
    chosen = job.data.kind.settings(job.config) if job.scored_each_epoch else {}
    held_out = {"held_out": job.data.held_out.digest} if job.config.train.held_out else {}
    return {"selection": selection, **rows_of(job, *rows(job)), **held_out, **weights(job), **chosen}


def rows(job: Job) -> tuple[str, ...]:
    """Return the parts that are read: also the evaluation rows if the model is evaluated between epochs."""
    return ("train", "eval") if job.scored_each_epoch else ("train",)


def work(job: Job) -> Work:
    """Train and write `adapter/`."""
    from lora_drop.config.identity import to_dict
    from lora_drop.pruning.selection import Selection
    from lora_drop.runs import models
    from lora_drop.runs.facts import training_settings

    config, method = job.config, job.method
    selection = Selection.load(job.run.file("selection.json")) if job.selects else None
    model = method.build(models.load_backbone(job), config.method, config.seed, selection)
    models.start(job, model)
    if method.prepare is not None:
        method.prepare(model.to(job.device), job.data.some_batches(method.examples))
    parameters = method.count(model)
    processes.by_first(lambda: forget_evaluation(job.run))
    evaluated = job.scored_each_epoch
    outcome = models.fit(job, "train", method, model, job.data.train.encoded, config.train, evaluated=evaluated)
    processes.by_first(lambda: _write(job, model))
    kept = f"kept epoch {outcome.kept_epoch:g} ({config.train.select_epoch})"
    return f"{parameters.adapter:,} trainable parameters (head {parameters.head:,}); {kept}", {
        "trainable_parameters": asdict(parameters),
        "trained_with": training_settings(to_dict(config)),
        **({"selection": digest_of(job, "selection.json", "select")} if job.selects else {}),
        "train_rows": len(job.data.train.rows),
        **({"held_out_rows": len(job.data.held_out.rows)} if config.train.held_out else {}),
        "precision": config.train.precision,
        "computed": outcome.computed,
        "select_epoch": config.train.select_epoch,
        "kept_epoch": outcome.kept_epoch,
        "epochs": outcome.epochs,
    }


def _write(job: Job, model: nn.Module) -> None:
    from lora_drop.runs import models
    from lora_drop.runs.load import TASK_FILE

    with write_folder(job.run.file("adapter")) as folder:
        job.method.save(model, folder)
        if job.task.record:
            write_json(folder / TASK_FILE, dict(job.task.record))
            models.backbone_config(model).save_pretrained(folder)  # it names the labels


STAGE = Stage(
    name="train",
    help="Stage 4: train a fresh model under the selection.",
    version=2,  # the parts of a head are not wrapped a second time
    outputs=("adapter",),
    needs=("select",),
    settings=settings,
    inputs=inputs,
    work=work,
    rows=rows,
    shared=True,
)
