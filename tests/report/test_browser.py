"""The page in a real browser: widths, sorting, no request and no error."""

import html
import shutil
import subprocess

import pytest

from harness.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
PROBE = """
<script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, out = [];
  out.push("overflow " + (page.scrollingElement.scrollWidth - page.scrollingElement.clientWidth));
  const names = () => [...page.querySelectorAll("table.sortable tbody tr:not(.model) th")].map(x => x.textContent);
  const button = [...page.querySelectorAll("th button")].find(b => b.textContent.startsWith("Loss"));
  out.push("before " + names()); button.click();
  out.push("once " + names()); button.click();
  out.push("twice " + names() + " " + button.closest("th").getAttribute("aria-sort"));
  out.push("fetched " + page.defaultView.performance.getEntriesByType("resource").length);
  document.title = out.join("; ");
});
</script>
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_sorts_and_fetches_nothing(frame, tmp_path, width):
    long = "a_loss_with_a_very_long_name_and_no_place_to_break_it(of=many, arguments=[1,2,3,4,5,6,7,8,9])"
    for loss, value in (("dice", 0.7), ("ce", 0.8), (long, 0.6)):
        frame.cell(loss, lr=0.01).curve(f"t{len(frame.cell_rows) - 1}", [1.0, 0.5])
        for name in ("aorta", "gallbladder", "left_kidney", "right_kidney", "liver", "pancreas", "spleen", "stomach"):
            frame.case(loss, value, **{"class": name}).case(loss, 5.0, metric="hd95", **{"class": name})
    frame.cell("dice", 1, "error", message="x" * 300)
    about = {"suite": "y" * 300, "commands": ["z" * 300], "data": [{"name": "d", "source": "s" * 300}]}
    page = write_report("T" * 60, "", *frame.frames, tmp_path / "r", about=about).read_text(encoding="utf-8")
    probe = tmp_path / "probe.html"
    frame_of = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    probe.write_text(f"<!doctype html><meta charset=utf-8><title></title>{frame_of}{PROBE}", encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", probe.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = html.unescape(dom.split("<title>")[1].split("</title>")[0])
    assert title == (
        f"overflow 0; before ce,dice,{long}; once {long},ce,dice; twice dice,ce,{long} descending; fetched 0"
    )
