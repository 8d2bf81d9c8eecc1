"""What the built-in losses are tuned over where a suite does not say it, with the source of every range.

They stand here and not on the classes: the source of a loss says which records are of it, and a range says nothing of
its numbers. A loss that is not here has nothing but its learning rate to tune: it has no parameter, or no source that
says where to look. Background, reduction, smoothing and absent classes are conventions of a comparison, not parameters.
"""

from __future__ import annotations

from typing import Any

SPACES: dict[str, dict[str, Any]] = {
    "topk": {"k": {"low": 1.0, "high": 50.0, "log": True}},
    "ohem": {"threshold": (0.5, 0.95)},
    "focal": {"gamma": (0.5, 5.0)},
    "unet_ce": {"w0": {"low": 1.0, "high": 20.0, "log": True}, "sigma": (2.0, 10.0)},
    "distance_ce": {"scale": {"low": 0.1, "high": 10.0, "log": True}},
    "distance_weighted_ce": {"power": (0.5, 2.0)},
    "structural_similarity": {"beta": (0.01, 0.5)},
    "penalty_generalized_dice": {"k": (0.5, 5.0)},
    "tversky": {"fn_weight": (0.1, 0.9), "fp_weight": {"one_minus": "fn_weight"}},
    "focal_tversky": {"fn_weight": (0.1, 0.9), "fp_weight": {"one_minus": "fn_weight"}, "gamma": (1.0, 3.0)},
    "asymmetric_similarity": {"beta": (0.5, 3.0)},
    "sensitivity_specificity": {"r": {"low": 0.01, "high": 0.5, "log": True}},
    "rmi": {"bce_weight": (0.1, 0.9)},
    "soft_cldice": {"iterations": (1, 10)},
    "hausdorff_dt": {"alpha": (1.0, 3.0)},
    "hausdorff_one_sided": {"alpha": (1.0, 3.0)},
    "hausdorff_erosion": {"alpha": (1.0, 3.0)},
    "hausdorff_conv": {"alpha": (1.0, 3.0)},
    "shape_aware": {"weight": {"low": 0.1, "high": 10.0, "log": True}},
    "boundary_dou": {"limit": (0.0, 0.9)},
    "active_contour": {"region_weight": {"low": 0.1, "high": 10.0, "log": True}},
    "active_boundary": {"max_distance": (5.0, 40.0)},
    "pixel_triplet": {"margin": (0.1, 1.0)},
    "dice_ce": {"dice_weight": (0.1, 0.9), "ce_weight": {"one_minus": "dice_weight"}},
    "dice_topk": {"k": {"low": 1.0, "high": 50.0, "log": True}},
    "dice_focal": {"gamma": (0.5, 5.0)},
    "distance_dice": {"scale": {"low": 0.1, "high": 10.0, "log": True}},
    "combo": {"ce_weight": (0.1, 0.9), "fn_weight": (0.1, 0.9), "fp_weight": {"one_minus": "fn_weight"}},
    "exp_log": {"dice_gamma": (0.2, 2.0), "ce_gamma": (0.2, 2.0)},
    "symmetric_unified_focal": {"focal_weight": (0.1, 0.9), "delta": (0.1, 0.9), "gamma": (0.1, 0.9)},
    "asymmetric_unified_focal": {"focal_weight": (0.1, 0.9), "delta": (0.1, 0.9), "gamma": (0.1, 0.9)},
    "gsl": {"alpha": ["linear", "cosine"]},
    "topology_focal": {"weight": {"low": 0.01, "high": 1.0, "log": True}, "gamma": (0.5, 5.0)},
}

SOURCES: dict[str, str] = {
    "topk": "Our range around the 10 % of nnU-Net; Wu et al., 2016, give none.",
    "ohem": "Our range around the 0.7 of mmsegmentation.",
    "focal": "Lin et al., 2017, Table 1b: 0.5 to 5; Azad et al., 2023, Table 5, sweep 1.5 to 3.",
    "unet_ce": "Our range around Ronneberger et al., 2015: w0 = 10, sigma about 5 pixels.",
    "distance_ce": "Our range around the factor 1 of Caliva et al., 2019.",
    "distance_weighted_ce": "Our range around the distance itself.",
    "structural_similarity": "Our range around 0.1, for which Zhao et al., 2019, is cited.",
    "penalty_generalized_dice": "Our range around the k = 2.5 of Yang et al., 2019.",
    "tversky": "Salehi et al., 2017, with α + β = 1 (they go from 0.5 to 0.9); Azad et al., 2023, Table 5: 0.2 to 0.8.",
    "focal_tversky": "Abraham and Khan, 2019: γ from 1 to 3; weights as for Tversky.",
    "asymmetric_similarity": "Hashemi et al., 2018: β from 1 to 3, and the other side of 1.",
    "sensitivity_specificity": "Brosch et al., 2015: 0.01 to 0.1 are similar; wider, to one half.",
    "rmi": "Our range around the one half of Zhao et al., 2019.",
    "soft_cldice": "Our range around the 3 of Shit et al., 2021, who take the largest radius seen.",
    "hausdorff_dt": "Karimi and Salcudean, 2019: α from 1 to 3 found good, 2 taken.",
    "hausdorff_one_sided": "As for hausdorff_dt.",
    "hausdorff_erosion": "As for hausdorff_dt.",
    "hausdorff_conv": "As for hausdorff_dt.",
    "shape_aware": "Our range around the factor 1 of Al Arif et al., 2017.",
    "boundary_dou": "Our range with the 0.8 of Sun et al., 2023, in it.",
    "active_contour": "Our range around the λ = 1 of Chen et al., 2019.",
    "active_boundary": "Our range around the 20 pixels of Wang et al., 2022.",
    "pixel_triplet": "Our range around one half.",
    "dice_ce": "Weights that add up to 1; nnU-Net's equal weights are the middle, at half the rate.",
    "dice_topk": "As for topk.",
    "dice_focal": "As for focal.",
    "distance_dice": "As for distance_ce.",
    "combo": "Taghanaki et al., 2019: α and β in (0, 1).",
    "exp_log": "Wong et al., 2018, take γ = 0.3; our range goes to both sides of 1.",
    "symmetric_unified_focal": "Yeung et al., 2022: λ, δ and γ in (0, 1), 0.5, 0.6 and 0.5 taken.",
    "asymmetric_unified_focal": "As for symmetric_unified_focal.",
    "gsl": "Celaya et al., 2023: linear and cosine schedules; their step schedule needs its own length.",
    "topology_focal": "Our range; Demir et al., 2023, do not state the weight. γ as for focal.",
}
