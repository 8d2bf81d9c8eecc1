"""`bench check LOSS...`: certificates in the terminal, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.check import Certificate, Line, check_loss
from harness.errors import BenchError
from harness.grid import plain_losses
from harness.loss_text import read_loss
from harness.losses import LOSSES
from harness.printing import print_json
from harness.yamlfile import YamlFile

_MARKS = {"pass": "[green]pass[/]", "fail": "[bold red]FAIL[/]", "declared": "[yellow]declared[/]"}


def specify(text: str) -> dict[str, Any]:
    """The specification of a loss of the command line: `dice`, `file.py:Class`, `focal(gamma=2)`, `focal: {gamma: 2}`.

    Raises:
        BenchError: There is no such loss, or it has no such argument.
    """
    name, args = read_loss(text)
    found = list(plain_losses(name, args, YamlFile(Path(text), None), ()))
    if len(found) != 1:
        raise BenchError(f"{text!r}: a sweep is several losses; name them one by one.")
    return found[0].spec


def run_check(names: Sequence[str], as_json: bool, cache: Path) -> int:
    """Check losses; returns 1 where a line fails."""
    specs = [specify(text) for name in names for text in (LOSSES if name == "all" else [name])]
    console = Console()
    certificates = []
    for spec in specs:
        if not as_json and console.is_terminal:
            with console.status(f"checking {spec['name']}"):
                certificate = check_loss(spec, prepared=cache / "prepared")
        else:
            certificate = check_loss(spec, prepared=cache / "prepared")
        certificates.append(certificate)
        if not as_json:
            show_certificate(certificate, console)
    if as_json:
        print_json([c.as_dict() for c in certificates])
    return 0 if all(c.passed for c in certificates) else 1


def show_certificate(certificate: Certificate, console: Console) -> None:
    """Print a certificate."""
    failed = len(certificate.failed)
    verdict = "[green]passes[/]" if certificate.passed else f"[bold red]fails {failed}[/]"
    console.print(f"\n[bold]{certificate.loss}[/] {verdict} ({certificate.seconds:.1f} s)", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for line in certificate.lines:
        table.add_row(f"  {line.name}", _MARKS.get(line.outcome, line.outcome), _text(line))
    console.print(table, highlight=False)


def _text(line: Line) -> str:
    text = line.text.replace("[", "\\[")
    return f"{text} ({line.reason})" if line.reason else text
