"""The nested loss for `sentence-transformers`' own trainer.

    from services.trainer.training.sentence_loss import NestedLoss

    loss = NestedLoss(model, dims=[64, 128, 256, 384])
    SentenceTransformerTrainer(model=model, train_dataset=dataset, loss=loss).train()

Values and gradients are those of `MatryoshkaLoss` over `MultipleNegativesRankingLoss`, in one pass
over the sizes, with one gather where several devices share a batch. Columns go through the model
one by one: joined, short anchors would be padded to the longest document.

Shapes: B texts of a column, D full width.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from services.trainer.training import parallel
from services.trainer.training.loss import nested_loss


class NestedLoss(torch.nn.Module):
    """InfoNCE at every size, of columns (anchor, positive, any number of negatives).

    Args:
        model: a SentenceTransformer.
        dims: sizes to train for, in any order; name the full one too, or it is not trained.
        weights: what the loss of each size counts for, in the order of `dims`; None: 1 each.
        scale: times the cosine, before the softmax.
        gather_across_devices: whether every anchor meets the documents of all processes.
        kernel: whether `loss_kernel.py` computes it: on an accelerator, where it is not measured
            yet, and with the extra `kernel` installed.

    Raises:
        ValueError: a size is none of the model's, or there is not one weight for each.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 (sentence-transformers has no types)
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        scale: float = 20.0,
        gather_across_devices: bool = False,
        kernel: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.scale = scale
        self.gather_across_devices = gather_across_devices
        self.kernel = kernel
        weights = [1.0] * len(dims) if weights is None else weights
        if len(weights) != len(dims):
            raise ValueError(f"weights must be {len(dims)} numbers, one for each of dims")
        full = model.get_embedding_dimension()
        if not dims or len(set(dims)) != len(dims) or not 1 <= min(dims) <= max(dims) <= full:
            raise ValueError(f"dims must be between 1 and {full}, each once, got {tuple(dims)}")
        ordered = sorted(zip(dims, weights, strict=True))
        self.dims = tuple(dim for dim, _ in ordered)
        self.weights = tuple(float(weight) for _, weight in ordered)

    def forward(
        self, sentence_features: Iterable[dict[str, torch.Tensor]], labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the weighted sum over the sizes; labels are not used, as a row's are its columns.

        Args:
            sentence_features: of each column, as the trainer makes them.
            labels: ignored.
        """
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        return self.compute_loss_from_embeddings(embeddings, labels)

    def compute_loss_from_embeddings(
        self, embeddings: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the same of full vectors_BD of each column.

        Raises:
            ValueError: there are not two columns at least.
        """
        if len(embeddings) < 2:
            raise ValueError(
                f"expected anchors and positives at least, got {len(embeddings)} column"
            )
        anchors_BD, *documents = embeddings
        own_B = torch.arange(len(anchors_BD), device=anchors_BD.device)
        if self.gather_across_devices:
            own_B += parallel.rank() * len(anchors_BD)
            width = anchors_BD.shape[1]
            # One message for all columns.
            gathered = parallel.gather(torch.cat(documents, dim=1))
            documents = list(torch.split(gathered, width, dim=1))
        documents_ND = torch.cat(documents)
        if self.kernel:
            # Triton is an extra.
            from services.trainer.training.loss_kernel import kernel_loss

            losses_K = kernel_loss(anchors_BD, documents_ND, self.dims, None, self.scale, own_B)
        else:
            losses_K = nested_loss(
                anchors_BD, documents_ND, self.dims, None, None, self.scale, own_B
            )
        return losses_K @ losses_K.new_tensor(self.weights)

    def get_config_dict(self) -> dict[str, Any]:
        """Return what model cards say of the loss."""
        return {
            "dims": self.dims,
            "weights": self.weights,
            "scale": self.scale,
            "gather_across_devices": self.gather_across_devices,
        }
