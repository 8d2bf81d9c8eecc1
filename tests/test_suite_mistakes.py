"""Mistakes in a suite: one sentence with file, line, key and the nearest right name."""

from pathlib import Path

import pytest

from harness.errors import BenchError
from harness.losses import ALSO_CALLED as LOSS_NAMES
from harness.losses import LOSSES
from harness.losses.needs import check_needs
from harness.metrics.table import ALSO_CALLED as METRIC_NAMES
from harness.metrics.table import METRICS, metric_of
from harness.suite import load_suite
from harness.yamlfile import nearest

BASE = """\
suite: toy
data: {manifest: phantom, split: default, slices: {size: [64, 64]}}
models: [unet: {width: 4}]
losses: [dice, ce]
seeds: 2
train: {epochs: 1, batch: 2, optimizer: {sgd: {lr: 1e-2}}}
rank: {by: [dice], baseline: dice}
"""


def suite(tmp_path: Path, text: str = BASE, **kwargs):
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path, **kwargs)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[dice, ce]", "[dise, ce]", "toy.yaml:4: losses[0]: unknown loss 'dise' (did you mean 'dice'?)"),
        ("[dice, ce]", "[tversky: {fn_wieght: 1}]", "toy.yaml:4: losses[0].tversky.fn_wieght: unknown argument 'fn_wieght' (did you mean 'fn_weight'?)"),
        ("[dice, ce]", "['focal(gamma=2)', ce]", "toy.yaml:4: losses[0]: expected `name: {argument: value}`, found 'focal(gamma=2)'; write `focal: {gamma: 2}`."),
        ("unet: {width: 4}", "'unet(width=4)'", "toy.yaml:3: models[0]: expected `name: {argument: value}`, found 'unet(width=4)'; write `unet: {width: 4}`."),
        ("[dice, ce]", "[dice, dice]", "the loss 'dice' stands here a second time"),
        ("[dice, ce]", "[focal: {gamma: .nan}]", "toy.yaml:4: losses[0].focal.gamma"),
        ("[dice, ce]", "[sum: [{loss: dice, weight: {linaer: [1, 0]}}]]", "toy.yaml:4: losses[0].sum[0].weight: expected a number, {linear"),
        ("[dice, ce]", "[sum: [{los: dice}]]", "losses[0].sum[0]: expected {loss"),
        ("[dice, ce]", "[focal: {gamma: {sweep: []}}]", "losses[0].focal.gamma.sweep"),
        ("manifest: phantom", "manifest: fantom", "toy.yaml:2: data.manifest: no data manifest 'fantom' (did you mean 'phantom'?)"),
        ("split: default", "split: defualt", "has no split 'defualt' (did you mean 'default'?)"),
        ("split: default", "split: kfold4, folds: [4]", "split 'kfold4' has folds 0 to 3, fold 4 was asked for"),
        ("split: default", "split: default, folds: all", "has no folds"),
        ("unet: {width: 4}", "unett", "toy.yaml:3: models[0]: unknown model 'unett' (did you mean 'unet'?)"),
        ("unet: {width: 4}", "unet: {widht: 4}", "toy.yaml:3: models[0].unet.widht: unknown argument 'widht' (did you mean 'width'?)"),
        ("epochs: 1", "epocs: 1", "toy.yaml:6: train.epocs: unknown key (did you mean 'epochs'?)"),
        ("epochs: 1", "epochs: 0", "toy.yaml:6: train.epochs"),
        ("sgd: {lr: 1e-2}", "sgd: {learning_rate: 1}", "toy.yaml:6: train.optimizer: sgd has no argument 'learning_rate'; it has: lr, momentum, nesterov, weight_decay."),
        ("sgd: {lr: 1e-2}", "sdg: {lr: 1}", "toy.yaml:6: train.optimizer"),
        ("baseline: dice", "baseline: dicee", "toy.yaml:7: rank.baseline: 'dicee' is not one of the suite's losses (did you mean 'dice'?)"),
        ("by: [dice]", "by: [hd59]", "'hd59' is not among the suite's metrics"),
        ("seeds: 2", "seeds: 2\nmetrics: [dcie]", "toy.yaml:6: metrics[0]: unknown metric"),
        ("seeds: 2", "seeds: 2\nselect: best:dice@test", "never selected on the test set"),
        ("seeds: 2", "seeds: 2\nselect: best:dice@val", "needs validation cases, and split 'default' has none"),
        ("[unet: {width: 4}]", "[{}]", "toy.yaml:3: models[0]: expected one `name: {arguments}`."),
        ("seeds: 2", "wiht: {varied: 1}", "toy.yaml:5: wiht: unknown key (did you mean 'with'?); known: suite, description, data, models, losses, with, seeds"),
        ("seeds: 2", "sedes: 2", "toy.yaml:5: sedes: unknown key (did you mean 'seeds'?)"),
        ("slices: {size: [64, 64]}", "slices: {size: [64, 64]}, patches: {size: [8, 8, 8]}", "give either `slices"),
        ("seeds: 2", "with: {varied: 0.5, ce: 0.5, except: [dicee]}", "with.except[0]: 'dicee' is not one of the losses (did you mean 'dice'?)"),
        ("sgd: {lr: 1e-2}", "sgd: {lr: 1e-2, nesterov: true}", "nesterov needs a momentum"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, nsd]", "toy.yaml:6: metrics[1]: metric 'nsd' needs a tolerance"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, hd95@2]", "toy.yaml:6: metrics[1]: metric 'hd95@2': hd95 takes no parameter"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, nsd@2, nsd@2.0]", "toy.yaml:6: metrics[2]: the metric 'nsd@2' stands here a second time"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, boundary_iou]", "toy.yaml:6: metrics[1]: 'boundary_iou' is for 2D data sets, and phantom has volumes"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, assd]\nprofile: transunet", "toy.yaml:6: metrics[1]: metric 'assd' is in none of the profiles asked for"),
        ("seeds: 2", "seeds: 2\nprofile: voxel-mox", "toy.yaml:6: profile: unknown profile 'voxel-mox' (did you mean 'voxel-max'?)"),
        ("seeds: 2", "seeds: 2\nprofile: [area, aria]", "toy.yaml:6: profile[1]: unknown profile 'aria' (did you mean 'area'?)"),
        ("seeds: 2", "seeds: 2\nprofile: [area, area]", "toy.yaml:6: profile[1]: the profile 'area' stands here a second time"),
        ("seeds: 2", "seeds: 2\nprofile: []", "toy.yaml:6: profile: the list is empty"),
        ("seeds: 2", "seeds: 2\nengine: point", "toy.yaml:6: engine: unknown engine 'point' (did you mean 'points'?)"),
        ("seeds: 2", "seeds: 2\nmetrics: [dice, tp]\nselect: best:tp@val", "toy.yaml:7: select: 'tp' is a count of voxels"),
        ("seeds: 2", "seeds: 2\nselect: best:nsd@2@val", "toy.yaml:6: select: 'nsd@2' is not among the suite's metrics"),
        ("seeds: 2", "seeds: []", "toy.yaml:5: seeds: the list is empty; give at least one seed"),
        ("seeds: 2", "seeds: [3, 4, 3]", "toy.yaml:5: seeds: the seed 3 stands here a second time"),
        ("split: default", "split: kfold4, folds: []", "toy.yaml:2: data.folds: the list is empty"),
        ("split: default", "split: kfold4, folds: [1, 1]", "toy.yaml:2: data.folds: the fold 1 stands here a second time"),
        ("{manifest: phantom, split: default, slices: {size: [64, 64]}}", "[]", "toy.yaml:2: data: the list is empty"),
        ("[unet: {width: 4}]", "[unet: {width: 4}, unet: {width: 4}]", "toy.yaml:3: models[1].unet: the model 'unet(width=4)' stands here a second time"),
        ("[unet: {width: 4}]", "[unet: {init: weights.pt}]", "toy.yaml:3: models[0].unet.init: expected {checkpoint: FILE}"),
        ("[dice, ce]", "[sum: [{loss: dice, weight: .inf}]]", "toy.yaml:4: losses[0].sum[0].weight: expected a number"),
        ("[dice, ce]", "[sum: [{loss: dice, weight: {linear: [.nan, 0]}}]]", "toy.yaml:4: losses[0].sum[0].weight: expected a number"),
        ("[dice, ce]", "[sum: [{loss: dice, weight: {switch: {at: 2, from: 0, to: 1}}}]]", "a switch needs `at` from 0 to 1"),
        ("[dice, ce]", "[sum: [{loss: dice, weight: {step: {every: 0, from: 0, to: 1}}}]]", "a step schedule needs `every` above 0"),
        ("[dice, ce]", "[pairs: {a: [dice, ce], b: [ce]}]", "toy.yaml:4: losses[0].pairs: the loss 'ce' stands in two groups"),
        ("seeds: 2", "with: {varied: .nan, ce: 0.5}", "toy.yaml:5: with.varied: expected the weight"),
        ("{lr: 1e-2}", "{lr: .nan}", "expected a finite number, found nan"),
        ("{lr: 1e-2}", "{lr: true}", "toy.yaml:6: train.optimizer: sgd: lr is a number from 0, found True"),
        ("{lr: 1e-2}", "{lr: 1e-2, momentum: -1}", "toy.yaml:6: train.optimizer: sgd: momentum is a number from 0, found -1"),
        ("epochs: 1", "epochs: 1, cases: 17", "toy.yaml:6: train.cases: 17 of 16 training cases of phantom"),
        ("epochs: 1", "epochs: 1, augment: {preset: transnet}", "toy.yaml:6: train.augment: unknown preset 'transnet' (did you mean 'transunet'?)"),
        ("epochs: 1", "epochs: 1, augment: {preset: nnunet, rotate: 9}", "toy.yaml:6: train.augment: a preset takes `flip` and nothing else"),
        ("seeds: 2", "quick: {size: [64]}", "toy.yaml:5: quick.size: expected one number or 2, found 1"),
        ("suite: toy", "suite: ..", "toy.yaml:1: suite: expected a name of letters, digits, '_', '.' and '-' that begins with a letter or a digit, found '..'."),
        ("seeds: 2", "seeds: five", "toy.yaml:5: seeds: expected a whole number or a list, found 'five'."),
        ("seeds: 2", "seeds: 0", "toy.yaml:5: seeds: expected a number above 0 or a list, found 0."),
        ("seeds: 2", "seeds: [1, x]", "toy.yaml:5: seeds[1]: expected a whole number, found 'x'."),
        ("seeds: 2", "seeds:", "toy.yaml:5: seeds: expected a whole number or a list, found nothing."),
        ("size: [64, 64]", "size: 64", "toy.yaml:2: data.slices.size: expected a list, such as [256, 256], found 64."),
        ("size: [64, 64]", "size: [64]", "toy.yaml:2: data.slices.size: expected more values, such as [256, 256], found 1."),
        ("size: [64, 64]", "size: [1, 2, 3]", "toy.yaml:2: data.slices.size: expected 2 values, such as [256, 256], found 3."),
        ("slices: {size: [64, 64]}", "patches: {size: nnunte}", "toy.yaml:2: data.patches.size: expected a list or 'nnunet', such as [64, 128, 128], found 'nnunte' (did you mean 'nnunet'?)."),
        ("[dice, ce]", "dice", "toy.yaml:4: losses: expected a list, found 'dice'; write [dice]."),
        ("[dice, ce]", "[]", "toy.yaml:4: losses: the list is empty; give at least one."),
        ("[dice, ce]", "[3]", "toy.yaml:4: losses[0]: expected text or a mapping, found 3."),
        ("by: [dice]", "by: dice", "toy.yaml:7: rank.by: expected a list, found 'dice'; write [dice]."),
        ("by: [dice]", "by: [DSC]", "toy.yaml:7: rank.by[0]: 'DSC' is not among the suite's metrics (did you mean 'dice'?); it has: dice, hd95, asd."),
        ("{sgd: {lr: 1e-2}}", "adamw", "toy.yaml:6: train.optimizer: expected a mapping, such as {adamw: {lr: 0.001}}, found 'adamw'."),
        ("sgd: {lr: 1e-2}", "adamW: {lr: 1}", "toy.yaml:6: train.optimizer.adamW: expected 'sgd', 'adam' or 'adamw', found 'adamW' (did you mean 'adamw'?)."),
        ("epochs: 1", "epochs: 1, schedule: cos", "toy.yaml:6: train.schedule: expected 'constant', 'poly', 'cosine' or 'plateau', found 'cos' (did you mean 'cosine'?)."),
        ("epochs: 1", "epochs: 1, lr: 0.1", "toy.yaml:6: train.lr: unknown key; write `optimizer: {adamw: {lr: 1e-3}}`."),
        ("epochs: 1", "epochs: 1, cases: 0", "toy.yaml:6: train.cases: expected 'all', a number above 0 or a list, found 0."),
        ("epochs: 1", "epochs: 1, clip: 0", "toy.yaml:6: train.clip: expected a number above 0, found 0."),
        ("epochs: 1", "epochs: 1, augment: {rotate: 200}", "toy.yaml:6: train.augment.rotate: expected a number up to 180, found 200."),
        ("epochs: 1", "epochs: 1, augment: {rotat: 2}", "toy.yaml:6: train.augment.rotat: unknown key (did you mean 'rotate'?)"),
        ("epochs: 1", "epochs: 1, augment: nnunet", "toy.yaml:6: train.augment: expected a mapping, such as {preset: nnunet}, found 'nnunet'."),
        ("seeds: 2", "baseline: dice", "toy.yaml:5: baseline: unknown key, it belongs under `rank`; known: suite,"),
        ("seeds: 2", "with: dice", "toy.yaml:5: with: expected a mapping, such as {varied: 0.5, ce: 0.5}, found 'dice'."),
        ("seeds: 2", "metrics: [dsc]", "toy.yaml:5: metrics[0]: unknown metric 'dsc' (did you mean 'dice'?); known: dice, iou,"),
        ("[dice, ce]", "[DiceCE]", "toy.yaml:4: losses[0]: unknown loss 'DiceCE' (did you mean 'dice_ce'?)"),
        ("unet: {width: 4}", "SegResNett", "a class of monai.networks.nets goes by its bare name"),
        ("suite: toy", "suite: toy: [", "toy.yaml:1: not valid YAML"),
    ],
)  # fmt: skip
def test_mistakes_name_file_line_and_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in BASE
    with pytest.raises(BenchError) as error:
        suite(tmp_path, BASE.replace(old, new, 1))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("suite", "right", "wrong", "said"),
    [
        ("quickstart", "seeds: 2", "seeds: two", ": seeds: expected a whole number or a list, found 'two'."),
        (
            "hippocampus_noise",
            "sigma: [1, 2, 4]",
            "sigma: [1, -2]",
            ": labels[1].jitter.sigma[1]: expected a number above 0, found -2.",
        ),
    ],
)
def test_a_sentence_names_the_place_in_the_file_and_no_type(
    tmp_path: Path, suite: str, right: str, wrong: str, said: str
) -> None:
    text = (Path(__file__).parents[1] / "suites" / f"{suite}.yaml").read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(BenchError) as error:
        load_suite(path)
    assert said in str(error.value) and "constrained" not in str(error.value) and "function-" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DiceCE", "dice_ce"), ("dice + ce", "dice_ce"), ("Dice", "dice"), ("cldice", "soft_cldice"), ("bce", "ce"),
        ("cross entropy", "ce"), ("FocalLoss", "focal"), ("BCELoss", "ce"), ("TLoss", "t_loss"), ("hausdorff", "hausdorff_dt"), ("hd", "hausdorff_dt"),
        ("gdl", "generalized_dice"), ("dsc", "dice"), ("mIoU", "jaccard"), ("wce", "weighted_ce"),
        ("focal_tversy", "focal_tversky"), ("tversk", "tversky"), ("dicee", "dice"),
    ],
)  # fmt: skip
def test_the_loss_that_was_meant(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(BenchError, match=f"did you mean '{meant}'"):
        suite(tmp_path, BASE.replace("[dice, ce]", f"['{name}']"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DSC", "dice"), ("f1", "dice"), ("mIoU", "miou"), ("HD 95", "hd95"), ("hd59", "hd95"), ("recall", "sensitivity"),
        ("surface_dice@2", "nsd"), ("jaccard", "iou"), ("AVD", "volume_difference"), ("assdd", "assd"),
    ],
)  # fmt: skip
def test_the_metric_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(BenchError, match=f"did you mean '{meant}'"):
        metric_of(name)


def test_other_names_are_those_of_what_there_is() -> None:
    assert set(LOSS_NAMES.values()) <= set(LOSSES) and not set(LOSS_NAMES) & set(LOSSES)
    assert set(METRIC_NAMES.values()) <= set(METRICS)


def test_a_name_without_a_neighbour_gets_none() -> None:
    assert nearest("xyzzy", ["dice", "ce"]) == "" and nearest("", ["dice"]) == nearest("+", ["dice"]) == ""
    assert nearest("bce", ["dice"], {"bce": "ce"}) == "", "another name of what is not here"


def test_a_need_that_nobody_supplies_names_the_one_that_was_meant() -> None:
    with pytest.raises(BenchError, match=r"'distances', which nobody supplies \(did you mean 'distance_in'\?\)"):
        check_needs(["distances"])
