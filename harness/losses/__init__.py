"""Segmentation losses: logits in, softmax inside, ignored voxels without value or gradient.

`LOSSES` is the table of built-in names. Classes are imported when they are first asked for, so the table costs nothing:

    from harness.losses import Dice
    value = Dice()(logits, target)     # logits (B, C, *S) raw, target (B, *S) int64, 255 ignored
"""

from __future__ import annotations

from typing import Any

LOSSES: dict[str, str] = {
    # pixel
    "ce": "harness.losses.pixel:CrossEntropy",
    "weighted_ce": "harness.losses.pixel:WeightedCrossEntropy",
    "balanced_ce": "harness.losses.pixel:BalancedCrossEntropy",
    "topk": "harness.losses.pixel:TopK",
    "ohem": "harness.losses.pixel:OHEM",
    "focal": "harness.losses.pixel:Focal",
    "unet_ce": "harness.losses.distance:UNetWeightMap",
    "distance_ce": "harness.losses.distance:DistanceMapCE",
    "distance_weighted_ce": "harness.losses.distance:DistanceWeightedCE",
    "structural_similarity": "harness.losses.structural:StructuralSimilarity",
    "t_loss": "harness.losses.t_loss:TLoss",
    # region
    "dice": "harness.losses.dice:Dice",
    "log_cosh_dice": "harness.losses.dice:LogCoshDice",
    "generalized_dice": "harness.losses.dice:GeneralizedDice",
    "penalty_generalized_dice": "harness.losses.dice:PenaltyGeneralizedDice",
    "gwdl": "harness.losses.wasserstein:GeneralizedWassersteinDice",
    "jaccard": "harness.losses.region:Jaccard",
    "lovasz": "harness.losses.lovasz:LovaszSoftmax",
    "lovasz_hinge": "harness.losses.lovasz:LovaszHinge",
    "tversky": "harness.losses.region:Tversky",
    "focal_tversky": "harness.losses.region:FocalTversky",
    "asymmetric_similarity": "harness.losses.region:AsymmetricSimilarity",
    "sensitivity_specificity": "harness.losses.region:SensitivitySpecificity",
    "rmi": "harness.losses.rmi:RMI",
    "soft_cldice": "harness.losses.topology:SoftClDice",
    # boundary
    "boundary": "harness.losses.distance:Boundary",
    "region_wise": "harness.losses.distance:RegionWise",
    "rectified_region_wise": "harness.losses.distance:RectifiedRegionWise",
    "generalized_surface": "harness.losses.surface:GeneralizedSurface",
    "hausdorff_dt": "harness.losses.hausdorff:HausdorffDT",
    "hausdorff_one_sided": "harness.losses.hausdorff:HausdorffOneSided",
    "hausdorff_erosion": "harness.losses.hausdorff:HausdorffErosion",
    "hausdorff_conv": "harness.losses.hausdorff:HausdorffConvolution",
    "weighted_hausdorff": "harness.losses.hausdorff:WeightedHausdorff",
    "shape_aware": "harness.losses.contour:ShapeAware",
    "boundary_dou": "harness.losses.contour:BoundaryDoU",
    "active_contour": "harness.losses.contour:ActiveContour",
    "active_boundary": "harness.losses.active_boundary:ActiveBoundary",
    "conditional_boundary": "harness.losses.embedding:ConditionalBoundary",
    "pixel_triplet": "harness.losses.embedding:PixelTriplet",
    "distance_head": "harness.losses.heads:DistanceHead",
    "inverse_form": "harness.losses.inverse_form:InverseForm",
    # combination
    "dice_ce": "harness.losses.compound:DiceCE",
    "dice_topk": "harness.losses.compound:DiceTopK",
    "dice_focal": "harness.losses.compound:DiceFocal",
    "distance_dice": "harness.losses.distance:DistanceDice",
    "combo": "harness.losses.compound:Combo",
    "exp_log": "harness.losses.compound:ExpLog",
    "symmetric_unified_focal": "harness.losses.unified_focal:SymmetricUnifiedFocal",
    "asymmetric_unified_focal": "harness.losses.unified_focal:AsymmetricUnifiedFocal",
    "gsl": "harness.losses.surface:GSL",
    "topology_focal": "harness.losses.topology:TopologyAwareFocal",
    # priors and the parts of the shape-prior note
    "non_adjacency": "harness.losses.priors:NonAdjacency",
    "size_prior": "harness.losses.priors:SizePrior",
    "sobel_boundary": "harness.losses.contour:SobelBoundary",
    "attention": "harness.losses.shape_prior:AttentionRegularisation",
    "kl_shape_prior": "harness.losses.shape_prior:KLShapePrior",
    "shape_alignment": "harness.losses.shape_prior:ShapeAlignment",
}
# Names of other papers and libraries, where they are not those of our classes: for "did you mean".
ALSO_CALLED: dict[str, str] = {
    "bce": "ce",
    "nll": "ce",
    "log loss": "ce",
    "wce": "weighted_ce",
    "wbce": "weighted_ce",
    "dpce": "distance_ce",
    "soft dice": "dice",
    "dsc": "dice",
    "gdl": "generalized_dice",
    "gdice": "generalized_dice",
    "iou": "jaccard",
    "miou": "jaccard",
    "cldice": "soft_cldice",
    "ssim": "structural_similarity",
    "bd": "boundary",
    "hd": "hausdorff_dt",
    "bdou": "boundary_dou",
    "abl": "active_boundary",
    "ce dice": "dice_ce",
    "ufl": "symmetric_unified_focal",
}
_CLASSES = {target.partition(":")[2]: target.partition(":")[0] for target in LOSSES.values()}


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'harness.losses' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_CLASSES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_CLASSES]
