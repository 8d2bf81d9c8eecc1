"""A strict reading of our LaTeX: what pdflatex would stop at or read as something else is an error here.

It knows the few commands that a table needs, and no other; checks braces, environments, special characters, and that
every row of a table has as many columns as its specification.
"""

import re

# command → numbers of its arguments in braces
COMMANDS = {
    "begin": 1, "end": 1, "caption": 1, "label": 1, "centering": 0, "small": 0, "footnotesize": 0, "par": 0,
    "smallskip": 0, "toprule": 0, "midrule": 0, "bottomrule": 0, "cmidrule": 1, "multicolumn": 3, "emph": 1, "textbf": 1, "textcolor": 2, "underline": 1,
    "ensuremath": 1, "texttt": 1, "linewidth": 0, "tofit": 1,
    "textbackslash": 0, "textasciicircum": 0, "textasciitilde": 0, "textless": 0, "textgreater": 0, "textbar": 0,
    "textquotesingle": 0, "textasciigrave": 0, "ldots": 0, "texteuro": 0, "ss": 0, "o": 0, "O": 0, "i": 0, "j": 0,
    "ae": 0, "AE": 0, "l": 0, "L": 0, "aa": 0, "AA": 0, "oe": 0, "OE": 0, "S": 0, "P": 0, "copyright": 0,
    "c": 1, "d": 1, "b": 1, "r": 1, "u": 1, "v": 1, "H": 1,
}  # fmt: skip
ACCENTS = "`'^~=.\""
MATH = {
    "times", "pm", "cdot", "to", "leftarrow", "uparrow", "downarrow", "leq", "geq", "neq", "approx", "infty", "circ",
    "sum", "prod", "surd", "in", "cap", "cup", "setminus", "partial", "alpha", "beta", "gamma", "delta", "epsilon", "zeta",
    "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi",
    "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
}  # fmt: skip
RULES = r"\\(?:toprule|midrule|bottomrule|cmidrule\(lr\)\{\d+-\d+\})"


class Bad(AssertionError):
    """LaTeX that does not compile, or that prints something else."""


def check(text: str) -> list[list[str]]:
    """Check a file; returns the rows of its tables, each a list of cells."""
    if not text.isascii():
        raise Bad(f"not ASCII: {sorted({c for c in text if not c.isascii()})}")
    text = "\n".join(
        line for line in text.split("\n") if not line.startswith(("%", r"\providecommand", r"  \resizebox"))
    )
    _walk(text)
    rows = []
    for table in re.finditer(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows += _table(table[2], len(table[1]))
    if not rows and "\\begin{tabular}" in text:
        raise Bad("a table without rows")
    return rows


def _walk(text: str) -> None:
    stack: list[str] = []
    depth, math, i = 0, [], 0
    while i < len(text):
        char, inside = text[i], text[i] in "_^" and bool(math)
        if char == "\\":
            i = _command(text, i, stack, math, depth)
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth < 0:
                raise Bad(f"a brace too many before {text[i : i + 30]!r}")
            if math and depth == math[-1]:
                math.pop()
        elif char in "$#%" or (char in "_^" and not inside):
            raise Bad(f"{char!r} is not escaped: {text[max(0, i - 20) : i + 20]!r}")
        elif char == "&" and "tabular" not in stack:
            raise Bad(f"& outside of a table: {text[max(0, i - 20) : i + 20]!r}")
        elif char in '<>|"' or (ord(char) < 32 and char != "\n"):
            raise Bad(f"{char!r} prints another glyph")
        i += 1
    if depth or stack:
        raise Bad(f"not closed: {depth} braces, environments {stack}")


def _command(text: str, i: int, stack: list[str], math: list[int], depth: int) -> int:
    follows = text[i + 1 : i + 2]
    if follows == "\\":
        after = text[i + 2 :].lstrip()
        if after[:1] in ("[", "*"):
            raise Bad(f"the end of a row takes {after[:10]!r} as its argument")
        return i + 2
    if not follows.isalpha():
        if follows in "{}$&%#_,-":
            return i + 2
        if follows in ACCENTS and text[i + 2 : i + 3] == "{":
            return i + 2
        raise Bad(f"unknown command \\{follows}")
    name = re.match(r"[A-Za-z]+", text[i + 1 :])[0]
    end = i + 1 + len(name)
    if math:
        if name not in MATH:
            raise Bad(f"\\{name} in a formula")
        return end
    if name == "char":
        if not re.match(r"\d+\}", text[end:]):
            raise Bad("\\char without a number")
        return end
    if name not in COMMANDS:
        raise Bad(f"unknown command \\{name}")
    if COMMANDS[name] and not re.match(r"(?:\(lr\)|\[[a-z]+\])?\{", text[end:]):
        raise Bad(f"\\{name} without its argument")
    if name in ("toprule", "midrule", "bottomrule") and text[end:].lstrip()[:1] in ("[", "("):
        raise Bad(f"\\{name} takes what follows as its argument")
    if name == "ensuremath":
        math.append(depth)
    if name in ("begin", "end"):
        which = re.match(r"\{([a-z]+)\}", text[end:])[1]
        if name == "begin":
            stack.append(which)
        elif not stack or stack.pop() != which:
            raise Bad(f"\\end{{{which}}} closes another environment")
    return end


def _table(body: str, width: int) -> list[list[str]]:
    out = []
    for line in re.sub(RULES, "", body).split(r" \\"):
        if not line.strip():
            continue
        cells = [c.strip() for c in re.split(r"(?<!\\)&", line)]
        spans = [int(m[1]) if (m := re.match(r"\\multicolumn\{(\d+)\}", c)) else 1 for c in cells]
        if sum(spans) != width:
            raise Bad(f"{sum(spans)} columns in a table of {width}: {line.strip()!r}")
        out.append(cells)
    return out
