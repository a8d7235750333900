"""A scorer: how bright pictures are."""

import numpy as np
import torch

from conceptkit.evaluate.scorer_table import Scorer


class Brightness:
    """An embedding of one number."""

    def embed(self, pictures) -> torch.Tensor:
        """(n, 1)."""
        return torch.tensor([[float(np.asarray(picture).mean())] for picture in pictures])


SCORER = Scorer("brightness", "how bright", Brightness)
