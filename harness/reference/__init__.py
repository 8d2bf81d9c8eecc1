"""Reference of the losses, generated from the code: one page for each, and what they have in common.

`python -m harness.reference` writes `docs/losses/`. Text and figures are made from the docstrings, the signatures and
three files beside them: `measured.json` (`--measure`), `agreement.json` (the tests) and `cost.json`
(`benchmarks/losses.py`). The same input gives the same bytes.
"""

from harness.reference.entries import AZAD, MA, Entry, entry_of, problems
from harness.reference.write import out_of_date, write_reference

__all__ = ["AZAD", "MA", "Entry", "entry_of", "out_of_date", "problems", "write_reference"]
