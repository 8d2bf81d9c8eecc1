"""Seeds: pinned for good, one stream apart from the other, and independent of the order of a dictionary."""

import pytest

from harness.seeds import STREAMS, seed_of

BASE = {"data": "toy", "split": "s", "fold": None, "model": {"name": "unet", "args": {"width": 4}}, "repeat": 0}


def test_golden_value() -> None:
    # from the shell, without this package: the first 8 bytes of sha256sum of the line below (no line feed), halved
    # ["bench-seed-1",{"data":"toy","fold":null,"model":{"args":{"width":4},"name":"unet"},"repeat":0,"split":"s"},"order",[7]]
    assert seed_of("order", BASE, 7) == 1_981_286_011_486_158_812


def test_streams_keys_and_every_part_of_the_base_differ() -> None:
    seeds = [seed_of(stream, BASE, *keys) for stream in STREAMS for keys in ((), (0,), (1,), (0, 1), (1, 0), (10,))]
    changed = [{"data": "x"}, {"split": "x"}, {"fold": 0}, {"model": {"name": "unet", "args": {}}}, {"repeat": 1}]
    seeds += [seed_of("order", BASE | change) for change in changed]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)  # what torch and numpy take


def test_the_order_of_keys_does_not_count() -> None:
    turned = {key: BASE[key] for key in reversed(BASE)} | {"model": {"args": {"width": 4}, "name": "unet"}}
    assert list(turned) != list(BASE)
    assert seed_of("init", turned, 3) == seed_of("init", BASE, 3)


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown stream 'data', expected one of"):
        seed_of("data", BASE)
