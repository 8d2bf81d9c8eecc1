"""Mistakes in a suite: one sentence with file, line, key and the nearest right name."""

from pathlib import Path

import pytest

from harness.errors import BenchError
from harness.suite import load_suite

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
        ("[dice, ce]", "[]", "toy.yaml:4: losses"),
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
        ("{lr: 1e-2}", "{lr: .nan}", "Input should be a finite number, found nan"),
        ("{lr: 1e-2}", "{lr: true}", "toy.yaml:6: train.optimizer: sgd: lr is a number from 0, found True"),
        ("{lr: 1e-2}", "{lr: 1e-2, momentum: -1}", "toy.yaml:6: train.optimizer: sgd: momentum is a number from 0, found -1"),
        ("epochs: 1", "epochs: 1, cases: 17", "toy.yaml:6: train.cases: 17 of 16 training cases of phantom"),
        ("epochs: 1", "epochs: 1, augment: {preset: transnet}", "toy.yaml:6: train.augment: unknown preset 'transnet' (did you mean 'transunet'?)"),
        ("epochs: 1", "epochs: 1, augment: {preset: nnunet, rotate: 9}", "toy.yaml:6: train.augment: a preset takes `flip` and nothing else"),
        ("seeds: 2", "quick: {size: [64]}", "toy.yaml:5: quick.size: expected one number or 2, found 1"),
        ("suite: toy", "suite: ..", "toy.yaml:1: suite"),
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
        ("quickstart", "seeds: 2", "seeds: two", ": seeds: Input should be a valid integer"),
        (
            "hippocampus_noise",
            "sigma: [1, 2, 4]",
            "sigma: [1, -2]",
            ": labels[1].jitter.sigma[1]: Input should be greater than 0",
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
