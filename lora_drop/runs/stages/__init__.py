"""The stages of a run, in order. To add one, write a file with a `Stage` and name it here."""

from lora_drop.runs.stages import criteria, evaluate, norms, picture, sample, score, select, stability, train, trained
from lora_drop.runs.stages.base import Stage

STAGES: tuple[Stage, ...] = tuple(
    module.STAGE for module in (sample, score, norms, stability, criteria, select, picture, train, evaluate, trained)
)
BY_NAME = {stage.name: stage for stage in STAGES}
