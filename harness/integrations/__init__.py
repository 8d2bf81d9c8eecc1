"""Any loss of this package, or of a file of your own, in another trainer.

    from harness.integrations import to_monai, to_nnunet, nnunet_trainer

What a loss asks for besides logits and label (distance maps, the boundary, progress of the training) is met inside the
adapter as in a benchmark's own training; a loss that reads other outputs of a network is refused with a sentence.
Nothing of MONAI or nnU-Net is imported until it is needed.
"""

from __future__ import annotations

from harness.integrations.adapter import LossAdapter
from harness.integrations.monai import to_monai
from harness.integrations.nnunet import nnunet_trainer, to_nnunet

__all__ = ["LossAdapter", "nnunet_trainer", "to_monai", "to_nnunet"]
