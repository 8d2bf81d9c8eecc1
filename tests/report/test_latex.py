import importlib.util
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.frames import prepare
from harness.report.latex import LONG, escape, render
from harness.report.layouts import LAYOUTS, Numbers, build
from harness.report.view import Block, Column, Entry, Head, Row, TableView

spec = importlib.util.spec_from_file_location("texcheck", Path(__file__).with_name("texcheck.py"))
texcheck = importlib.util.module_from_spec(spec)
spec.loader.exec_module(texcheck)
check, Bad = texcheck.check, texcheck.Bad

GOLDEN = Path(__file__).with_name("survey_table.tex")
HOSTILE = [
    "Lovász-Softmax & 50% of_it #1 $x^2$ {a} ~b \\end{table}", "[0pt] row", "*star", "--- dashes", "<b>\"'`</b>|",
    "损失 函数", "α·β → γ(δ=0.5) ± 2²", "naïve Žižek Łódź ß Ø å", "two\nlines\r\nhere", "tab\tand \x07 bell", "\\", "", " ",
    "ḉ \u0301", "a" * 300, "%comment", "\\input{/etc/passwd}", "…–—“q”‘r’ €5 \u00a0\u202fµ 🙂",
]  # fmt: skip


def table(names, **more):
    rows = tuple(
        Row(n, (Entry(80.0, 1.0, "best"), Entry(-1234.5, mark="second", remark=n), Entry(text=n))) for n in names
    )
    columns = (Column("a_b", spread=True), Column("HD95 (mm)", 1), Column("words & co", words=True))
    heads = (Head("DSC (%)", 2, "p_q", lower=False), Head("x#y", 1, lower=True))
    given = {
        "layout": "t",
        "title": names[0],
        "stub": "Loss",
        "heads": heads,
        "columns": columns,
        "notes": tuple(names),
    }
    return TableView(**(given | {"blocks": (Block(names[-1], rows), Block("", rows[:1]))} | more))


# By hand: what LaTeX prints for our escapes of ASCII, read backwards.
PRINTS = {
    r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"\texttt{\char34}": '"', r"\textquotesingle{}": "'",
    r"\textasciigrave{}": "`", "{[}": "[", "{]}": "]", "{*}": "*", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&",
    r"\%": "%", r"\#": "#", r"\_": "_", "-{}": "-",
}  # fmt: skip


def printed(tex):
    return re.sub("|".join(re.escape(k) for k in sorted(PRINTS, key=len, reverse=True)), lambda m: PRINTS[m[0]], tex)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_every_ascii_text_is_printed_as_it_is(text):
    tex = escape(text)
    assert printed(tex) == text
    assert "--" not in tex  # would print a dash
    check(tex)


@given(st.text())
def test_every_text_is_ascii_that_reads_well(text):
    check(escape(text))


@pytest.mark.parametrize(
    "text, tex",
    [
        ("Lovász", r"Lov\'{a}sz"),
        ("Šimon ç ï", r"\v{S}imon \c{c} \"{\i}"),
        ("a_b & 5%", r"a\_b \& 5\%"),
        ("linear(1→0)·dice", r"linear(1\ensuremath{\to}0)\ensuremath{\cdot}dice"),
        ("α ς Ω", r"\ensuremath{\alpha} {[}U+03C2{]} \ensuremath{\Omega}"),
        ("Σσφ", r"\ensuremath{\Sigma}\ensuremath{\sigma}\ensuremath{\phi}"),
        ("中", "{[}U+4E2D{]}"),  # not in pdflatex's fonts: the code point, not nothing
        ("mm² 1\u202f000 −2", r"mm\ensuremath{^{2}} 1\,000 \ensuremath{-}2"),
        ("a--b---c-", "a-{}-b-{}-{}-c-"),  # hyphens, not dashes
        ("-–-—", "-{}--{}-{}---{}"),
        ("e\u0301", r"\'{e}"),  # composed and decomposed are one letter
    ],
)
def test_what_other_characters_become(text, tex):
    assert escape(text) == tex


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_leaves_the_table_whole(name):
    rows = check(render([table([name, "dice", name])]))
    heading = [1] if name else []  # the block's; a block without a name has none
    assert [len(r) for r in rows] == [3, 4, *heading, 4, 4, 4, 4]


def test_marks_survive_without_colour_and_numbers_are_rounded():
    rows = check(render([table(["dice"])]))
    assert rows[3] == [
        "dice", r"\textcolor{blue}{\textbf{80.00}} \ensuremath{\pm} 1.00",
        r"\textcolor{red}{\underline{\ensuremath{-}1\,234.5}} {\footnotesize (dice)}", "dice",
    ]  # fmt: skip


def test_headings_span_their_columns_with_the_direction():
    text = render([table(["dice"])])
    assert (
        r" & \multicolumn{2}{c}{DSC (\%) (p\_q) \ensuremath{\uparrow}} & \multicolumn{1}{c}{x\#y \ensuremath{\downarrow}}"
        in text
    )
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-4}" in text
    bare = render([table(["dice"], stub="", blocks=(Block("", (Row("", (Entry(1), Entry(2), Entry(3))),)),))])
    assert r"\cmidrule(lr){1-2} \cmidrule(lr){3-3}" in bare
    assert check(bare)[-1] == ["1.00", "2.0", "3.00"]


def test_a_long_table_comes_in_parts_of_a_page_and_labels_differ():
    names = [f"loss {i}" for i in range(LONG)]
    long = table(names)  # a block of 45 rows under a heading, and one of a single row without
    text = render([long, long, table(["dice"])])
    assert text.count(r"\begin{table}") == 5 and text.count("(2 of 2)}") == 2
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == 5 == len(labels)
    rows = check(text)
    assert len(rows) == 2 * ((2 + LONG - 1) + (2 + 1 + 2 + 1)) + 5  # the heading of the block stands in both parts
    first = [r[0] for r in rows[: 2 + LONG - 1 + 6] if len(r) == 4 and r[0].startswith("loss")]
    assert first == [*names, names[0]]


def test_a_layout_that_is_a_sentence_has_no_table():
    assert r"\begin" not in render([TableView("celaya", "x", notes=("Nothing was measured.",))])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.replace(r"\_", "_"),
        lambda t: t.replace(r" \\", "", 1),
        lambda t: t.replace(" & ", " ", 1),
        lambda t: t.replace("t-dice}", "t-dice"),
        lambda t: t.replace(r"\textbf{", r"\textbf{{"),
        lambda t: t.replace(r"\end{table}", r"\end{tabular}"),
        lambda t: t.replace(r"\end{tabular}", ""),
        lambda t: t.replace("dice", "dicé"),
        lambda t: t.replace("dice", "[x]"),
        lambda t: t.replace("textbf", "textbff"),
        lambda t: t.replace("dice", "$x$"),
        lambda t: t.replace("{2}{c}", "{3}{c}"),
    ],
)
def test_the_check_finds_what_is_broken(spoil):
    text = render([table(["dice"])])
    check(text)
    with pytest.raises(Bad):
        check(spoil(text))


def grid(frame):
    """Two models, four losses of which one lacks a run, three classes, all that the layouts ask for."""
    losses = [("dice", 0.9), ("tversky(fn_weight=0.2)", 0.85), ("tversky(fn_weight=0.8)", 0.87), ("Lovász & co_", 0.95)]
    for model in ("unet", "transunet"):
        for loss, value in losses:
            for seed in (0, 1):
                bad = loss.startswith("Lov") and seed == 1
                frame.cell(loss, seed, "diverged" if bad else "ok", model=model)
                for i, name in enumerate(() if bad else ("left_kidney", "spleen")):
                    at = {"seed": seed, "model": model, "class": name}
                    frame.case(loss, value - 0.1 * i - 0.01 * seed, **at)
                    frame.case(loss, 100 * (1 - value) + i, metric="hd95", **at)
                    frame.case(loss, 0.75, metric="sensitivity", unit="1", **at)
    return Numbers(prepare(*frame.frames))


def test_the_golden_file(frame):
    assert render(build(grid(frame), "survey_table")) == GOLDEN.read_text(encoding="ascii")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_well(frame, layout):
    views = build(grid(frame), layout)
    assert len(check(render(views))) == sum(2 + v.height for v in views)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex; the strict check above runs everywhere")
@pytest.mark.parametrize(
    ("kind", "packages"),
    [("article", "booktabs"), ("article", "booktabs,xcolor,graphicx"), ("[twocolumn]article", "booktabs")],
)
def test_pdflatex_compiles_every_layout_and_every_name(frame, tmp_path, kind, packages):
    numbers = grid(frame)
    views = [v for name in LAYOUTS for v in build(numbers, name)]
    views += [table([n, "dice", n]) for n in HOSTILE] + [table([f"x{i}" for i in range(60)])]
    views = [replace(v, title=v.title[:80]) for v in views]
    option, _, name = kind.rpartition("]")
    head = f"\\documentclass{option + ']' if option else ''}{{{name}}}\n\\usepackage{{{packages}}}\n"
    body = render(views).replace(
        "\n\\begin{table}", "\n\\clearpage\n\\begin{table}"
    )  # LaTeX holds few floats at a time
    (tmp_path / "t.tex").write_text(f"{head}\\begin{{document}}\n{body}\\end{{document}}\n", encoding="ascii")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Float too large" not in done.stdout


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_a_wide_table_fits_the_text_where_graphicx_is_there_and_a_narrow_one_keeps_its_size(tmp_path):
    def log(view, packages):
        text = f"\\documentclass{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\n{render([view])}\\end{{document}}\n"
        (tmp_path / "t.tex").write_text(text, encoding="ascii")
        run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    wide = table(["a loss with quite a long name, of which there are many in a survey of losses"])
    assert "Overfull" in log(wide, "booktabs") and "Overfull" not in log(wide, "booktabs,graphicx")
    assert "Overfull" not in log(table(["dice"]), "booktabs")
