"""Models behind one `Output`: a table of names, and any MONAI network by its class name.

A new model is one file with a `torch.nn.Module` that takes images (B, C, *S) and returns an `Output`, and one line
here; or no line at all: `pkg.mod:Class` and `my_model.py:MyNet` work in a suite too. No torch in this file.
"""

MODELS: dict[str, str] = {
    "unet": "harness.models.unet:UNet",
    "transunet": "harness.models.transunet:TransUNet",
    "shape_prior": "harness.models.shape_prior:ShapePriorNet",
    "jadon_unet": "harness.models.jadon_unet:JadonUNet",
    "attention_unet": "harness.models.monai_nets:AttentionUNet",
    "nnunet": "harness.models.nnunet:NNUNet",
    "segresnet": "harness.models.monai_nets:SegResNet",
    "unetr": "harness.models.monai_nets:UNETR",
    "swin_unetr": "harness.models.monai_nets:SwinUNETR",
}
# A bare name that is not in the table is looked up here: `AttentionUnet`, `SegResNet`, `DynUNet`, ...
BARE_MODULE = "monai.networks.nets"


# What a model gives to losses besides its embedding and its head.
PROVIDES: dict[str, frozenset[str]] = {
    "shape_prior": frozenset({"attention", "shape_tokens", "shape_prior", "token_maps"}),
    "attention_unet": frozenset({"attention"}),
    "nnunet": frozenset({"aux"}),
}


def provided(name: str) -> frozenset[str]:
    """What a model gives to losses that ask (see harness.losses.needs); foreign ones do not name their head."""
    if name not in MODELS:
        return frozenset({"embedding"})
    return frozenset({"embedding", "classify"}) | PROVIDES.get(name, frozenset())
