"""A gated MLP whose hidden units are rectified."""

from torch import Tensor, nn

from kleiber.config.model_size import gated_hidden
from kleiber.nn.mup import Site
from kleiber.types import Width
from kleiber.types.batch import Batch
from kleiber.types.model import MLP


class ReGLU(MLP):
    """down(relu(gate x) * up x). Shazeer 2020, arXiv:2002.05202, eq. 6."""

    def __init__(self, site: Site, hidden: Width | None = None) -> None:
        super().__init__()
        self.hidden = gated_hidden(site.width) if hidden is None else hidden
        self.gate = site.hidden(site.width, self.hidden)
        self.up = site.hidden(site.width, self.hidden)
        self.down = site.projection(self.hidden)

    def forward(self, x: Tensor, batch: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.down(self.gate(x).relu() * self.up(x)), {}

    def last_matrix(self) -> nn.Linear:
        return self.down
