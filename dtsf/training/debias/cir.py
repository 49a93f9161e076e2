"""Peer method against the habits of people and places: CIR, a feature reconstructed from those of other groups.

Plizzari et al., "What can a cook in Italy teach a mechanic in India? Action Recognition Generalisation Over Scenarios and
Locations" (ICCV 2023; structure from its code): the feature of a clip is the sum of those of *other* scenarios and locations in
the batch, weighted by learned attention ``softmax(LN(W_q z) LN(W_k z')^T)``, and this sum is classified with the clip's label by
the same classifier. Its second loss compares with text, which is not here. Our reading: the features are the fused ones of
groups. Scenarios and locations are persons and backgrounds: others differ in both, where they have names. If neither has names,
backgrounds are clusters of static embeddings, as for HSIC. Groups without others do not count. The classifier is one of its own,
for the feature and for its reconstruction, because several branches have no common head.
Letters: B groups, S others, D width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtsf.model.network import Output
from dtsf.training.data import Batch, Groups
from dtsf.training.debias.background import BackgroundDebiaser


class Cir(BackgroundDebiaser):
    """The attention over other groups, the classifier, and their terms."""

    def build(self, groups: Groups) -> None:
        """Make the layers, and number what others must differ in."""
        subject_N, background_N = groups.subject_N, groups.background_N
        if subject_N is None and background_N is None:
            super().build(groups)
            background_N = self.background_N
        self.differ: list[str] = []
        for name, number_N in (("subject", subject_N), ("place", background_N)):
            # All of one person or place: nobody differs, and it says nothing.
            if number_N is not None and len(number_N.unique()) > 1:
                self.register_buffer(f"{name}_of_N", number_N, persistent=False)
                self.differ.append(f"{name}_of_N")
        self.query, self.key = nn.Linear(self.width, self.width), nn.Linear(self.width, self.width)
        self.action = nn.Linear(self.width, self.n_classes)

    def losses(self, batch: Batch, output: Output, net: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``cir``, the classification of the feature and of its reconstruction, weighted."""
        feature_BD, label_B = output.feature_BD, batch.label_B
        others_BS = self.others(batch)
        counts_B = others_BS.any(1)
        rebuilt_BD = self.rebuild(feature_BD, others_BS)
        error_B = F.cross_entropy(self.action(rebuilt_BD), label_B, reduction="none")
        error = torch.where(counts_B, error_B, 0.0).sum() / counts_B.sum().clamp(min=1)
        return {"cir": self.config.cir * (error + F.cross_entropy(self.action(feature_BD), label_B))}

    def others(self, batch: Batch) -> Tensor:
        """Return for each group the groups of the batch that it may be reconstructed from: (B, S)."""
        # The first present view stands for the group.
        first_B1 = batch.mask_BV.int().argmax(1, keepdim=True)
        row_B = batch.row_BV.gather(1, first_B1).squeeze(1)
        others_BS = ~torch.eye(len(row_B), dtype=torch.bool, device=row_B.device)
        for name in self.differ:
            number_B = getattr(self, name)[row_B]
            others_BS &= number_B.unsqueeze(1) != number_B
        return others_BS

    def rebuild(self, feature_BD: Tensor, others_BS: Tensor) -> Tensor:
        """Return the weighted sum of the others' features: (B, D); 0 for a group without others."""
        query_BD, key_SD = (F.layer_norm(layer(feature_BD), (self.width,)) for layer in (self.query, self.key))
        score_BS = (query_BD @ key_SD.T).masked_fill(~others_BS, torch.finfo(query_BD.dtype).min)
        share_BS = torch.where(others_BS, score_BS.softmax(-1), 0.0)
        return share_BS @ feature_BD
