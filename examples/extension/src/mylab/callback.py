"""The size of the weights during training."""

from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Count


class WeightNorm(LeanCallback):
    """Logs the Euclidean norm of all weights as train/weight_norm, every `every` optimizer steps."""

    def __init__(self, every: Count = 10) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        if trainer.global_step % self.every == 0:
            norm = sum(float(weight.detach().square().sum()) for weight in pl_module.model.parameters()) ** 0.5
            for logger in trainer.loggers:
                logger.log_metrics({"train/weight_norm": norm}, trainer.global_step)
