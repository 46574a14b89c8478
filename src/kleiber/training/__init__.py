"""The training loop: one optimizer step, the LightningModule, trainers, checkpoints and loggers."""

from kleiber.types import lazy_exports

EXPORTS = {
    "CsvLogger": "loggers",
    "TensorBoard": "mirrors",
    "MLflow": "mirrors",
    "wandb_logger": "wandb_mirror",
    "DDP": "trainer",
    "ExpertParallel": "parallel",
    "FSDP": "fsdp",
    "Local": "trainer",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
