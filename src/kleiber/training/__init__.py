"""The training loop: one optimizer step, the LightningModule, trainers, checkpoints and loggers."""

from kleiber.types import lazy_exports

EXPORTS = {
    "CsvLogger": "loggers",
    "wandb_logger": "loggers",
    "DDP": "trainer",
    "FSDP": "trainer",
    "Local": "trainer",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
