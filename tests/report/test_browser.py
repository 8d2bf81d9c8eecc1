"""The page in a real browser, driven over the pipe of its DevTools protocol: real keys, real pointer, no request."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from harness.report import Panel, write_report
from harness.report.frames import prepare
from harness.report.page import render
from harness.report.view import Block, Column, Entry, Head, Row, TableView
from tests.conftest import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
]  # fmt: skip
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


class Browser:
    """One tab. Commands go to file descriptor 3 of the browser, answers come from 4, each ended by a zero byte."""

    def __init__(self, profile):
        (low, self.writer), (self.reader, out) = os.pipe(), os.pipe()
        inward, outward = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (low, out))  # clear of 3 and 4

        def wire():
            os.dup2(inward, 3)
            os.dup2(outward, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=wire, pass_fds=(3, 4), **quiet)
        for fd in (low, out, inward, outward):
            os.close(fd)
        self.rest, self.last, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _next(self):
        while b"\0" not in self.rest:
            got = os.read(self.reader, 1 << 20)
            assert got, "the browser has ended"
            self.rest += got
        one, self.rest = self.rest.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, **params):
        self.last += 1
        session = {"sessionId": self.session} if self.session else {}
        data = json.dumps({"id": self.last, "method": method, "params": params, **session}).encode() + b"\0"
        while data:
            data = data[os.write(self.writer, data) :]
        while (got := self._next()).get("id") != self.last:
            self.events.append(got)
        assert "error" not in got, f"{method}: {got.get('error')}"
        return got["result"]

    def open(self, url, *, width=1280, height=900, scheme="light", media="screen", scripts=True):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce"})  # no scrolling while a test clicks
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        for address in ("about:blank", url):  # away first, so that an address that differs in its hash loads anew
            self.events = []
            self.call("Page.navigate", url=address)
            while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
                self.events.append(self._next())
        if scripts:
            self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def js(self, code):
        got = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def key(self, key):
        more = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, 0), **({} if key in KEYS else {"text": key})}
        more |= {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=KEYS.get(key, 0))

    def at(self, selector, fx=0.5, fy=0.5):
        """A place in an element, in pixels of the window, after scrolling there."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return box[0] + fx * box[2], box[1] + fy * box[3]

    def mouse(self, kind, place, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], **more)

    def click(self, selector, fx=0.5, fy=0.5):
        place = self.at(selector, fx, fy)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, place, button="left", clickCount=1)

    def drag(self, selector, start, end):
        self.mouse("mousePressed", self.at(selector, *start), button="left", clickCount=1)
        self.mouse("mouseMoved", self.at(selector, *end), button="left", buttons=1)
        self.mouse("mouseReleased", self.at(selector, *end), button="left", clickCount=1)

    def complaints(self):
        """Console messages, exceptions, and requests for anything but the page itself and its own data."""
        self.js("0")
        bad = [
            e
            for e in self.events
            if e["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        ]
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return bad + [u for u in sent[1:] if not u.startswith("data:")]

    def close(self):
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=120)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


LONG = "a_loss_with_a_very_long_name_and_no_place_to_break_it(of=many, arguments=[1,2,3,4,5,6,7,8,9])"
MADE = {}  # the page, made once for all tests of this file


@pytest.fixture
def url(frame, tmp_path_factory):
    """Two data sets, two models, three losses, two classes, two metrics, failures, slices with and without image."""
    if "url" in MADE:
        return MADE["url"]
    for dataset, model in (("synapse", "unet"), ("synapse", "net"), ("acdc", "unet")):
        for loss, value in (("dice", 0.7), ("ce", 0.08), (LONG, 0.6)):
            for seed in (0, 1):
                at = {"dataset": dataset, "model": model}
                failed = loss == LONG and model == "net"
                frame.curve(f"t{len(frame.cell_rows)}", [1.5 + value + seed, 0.5 + value + seed, 0.25 + value + seed])
                frame.cell(loss, seed, "diverged" if failed else "ok", message="x" * 300 if failed else "", **at)
                for name, more in () if failed else (("left_kidney", 0.0), ("liver", 0.1)):
                    frame.case(loss, value + more, seed=seed, **at, **{"class": name})
                    frame.case(loss, 5.0 + 10 * value, seed=seed, metric="hd95", **at, **{"class": name})
    truth = np.zeros((20, 24), dtype=int)
    truth[5:12, 6:15] = 1
    guesses = {"dice": np.roll(truth, 2, 1), "ce": 0 * truth, LONG: truth.copy()}
    panels = [
        Panel("c1", "synapse", "unet", np.arange(480.0).reshape(20, 24), truth, guesses, {1: "liver"}),
        Panel("c2", "acdc", "unet", None, truth, guesses, {1: "liver"}),
    ]
    about = {"suite": "y" * 300, "commands": ["bench run toy.yaml"], "data": [{"source": "s" * 300}], "notes": ["n"]}
    page = write_report("T" * 60, "", *frame.frames, tmp_path_factory.mktemp("r"), about=about, panels=panels)
    MADE["url"] = page.as_uri()
    return MADE["url"]


NAMES = """(table => [...document.querySelectorAll(table)[0].tBodies].map(body =>
  [...body.rows].filter(r => r.cells.length > 1 && r.offsetParent).map(r => r.cells[0].textContent)))"""
BOARD = "#leaderboard [data-dataset=synapse] table"
HEAD = BOARD + " th:nth-child({}) button"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_asks_for_nothing_and_complains_of_nothing(browser, url, width, scheme):
    browser.open(url, width=width, scheme=scheme)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for button in ("#qualitative .tools button:last-child", ".legend button", "#leaderboard th button"):
        browser.js(f"document.querySelectorAll('{button}').forEach(b => b.click())")
    assert browser.js("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") == 0
    assert browser.js("[...document.images].length") == 0
    assert browser.complaints() == []


def test_without_scripts_the_page_is_whole(browser, url):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(url, scripts=False)
        widths = browser.js("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width)")
        assert len(widths) >= 2 + 3 + 2 and min(widths) > 300  # curves, Dice per patient, slices
        assert browser.js("document.querySelectorAll('button, select, input').length") == 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_heading_sorts_by_click_and_by_key_with_gaps_last(browser, url):
    browser.open(url)
    names = f"{NAMES}('{BOARD}')"
    assert browser.js(names) == [["dice", LONG, "ce"], ["dice", "ce", LONG]]
    browser.click(HEAD.format(1))
    assert browser.js(names) == [[LONG, "ce", "dice"], [LONG, "ce", "dice"]]
    # Ascending by DSC: 13 % before 65 % before 75 %; as text, or with the gap first, it would be another order.
    for press in ("Enter", "Enter"):
        browser.js(f"document.querySelector('{HEAD.format(2)}').focus()")
        browser.key(press)
    assert browser.js(names) == [["ce", LONG, "dice"], ["ce", "dice", LONG]]
    sorts = f"[...document.querySelectorAll('{BOARD} th[aria-sort]')].map(h => [h.cellIndex, h.ariaSort])"
    assert browser.js(sorts) == [[1, "ascending"]]
    browser.key("Enter")
    assert browser.js(names) == [["dice", LONG, "ce"], ["dice", "ce", LONG]]  # no number is last here too
    # Numbers sort as numbers: HD95 of 5.8, 11 and 12 mm; as text 5.8 would come last.
    browser.click(HEAD.format(5))
    assert browser.js(names)[0] == ["ce", LONG, "dice"]


def test_every_table_sorts_within_its_models(browser, url):
    browser.open(url)
    browser.click("#survey_table [data-dataset=synapse] tr:nth-child(2) th:nth-child(2) button")
    assert browser.js(f"{NAMES}('#survey_table [data-dataset=synapse] table')")[0][0] == "dice"  # the arrow says higher
    browser.js("document.querySelector('#provenance details:last-of-type').open = true")
    browser.click("#provenance th:nth-child(1) button")
    assert browser.js("document.querySelector('.runs tbody th').textContent") == LONG


def choose(browser, kind, value):
    browser.js(
        f"(() => {{ const s = document.querySelector('.filter [name={kind}]'); s.value = {json.dumps(value)};"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_the_filter_narrows_tables_and_figures_and_stands_in_the_address(browser, url):
    browser.open(url)
    kinds = browser.js("[...document.querySelectorAll('.filter select')].map(s => [s.name, s.options.length])")
    assert kinds == [["dataset", 3], ["model", 3], ["metric", 3], ["class", 3]]
    seen = "[...document.querySelectorAll('main :is(h3, th, figure)')].filter(e => e.checkVisibility()).map(e => e.textContent)"
    choose(browser, "metric", "HD95 (mm)")
    heads = f"[...document.querySelectorAll('{BOARD} thead th')].filter(h => h.offsetParent).map(h => h.textContent)"
    assert browser.js(heads) == ["Loss", "HD95 (mm)", "Runs", "ms/step", "of it, maps", "Peak MB"]
    choose(browser, "metric", "")
    choose(browser, "class", "left kidney")
    text = browser.js(
        "[...document.querySelectorAll('#survey_table thead th')].filter(h => h.offsetParent).map(h => h.textContent).join()"
    )
    assert "left kidney" in text and "liver" not in text and "mean" in text
    assert "stays the mean over classes" in browser.js("document.querySelector('.filter output').textContent")
    choose(browser, "class", "")
    choose(browser, "model", "net")
    assert browser.js("location.hash") == "#?model=net"
    assert browser.js(f"{NAMES}('{BOARD}')") == [[], ["dice", "ce", LONG]]
    assert not [t for t in browser.js(seen) if t.startswith("c1")]  # slices of the other model
    assert "Nothing in this section passes" in browser.js("document.querySelector('#qualitative').innerText")
    choose(browser, "dataset", "acdc")
    assert "This filter leaves nothing." in browser.js("document.querySelector('.filter output').textContent")
    assert "Nothing in this table passes" in browser.js("document.querySelector('#leaderboard').innerText")
    browser.click(".filter button")
    assert browser.js("location.hash") == "#" or browser.js("location.hash") == ""
    assert browser.js(f"{NAMES}('{BOARD}')") == [["dice", LONG, "ce"], ["dice", "ce", LONG]]
    browser.open(url + "#curves?dataset=synapse&model=net&class=nonsense")
    assert browser.js(f"{NAMES}('{BOARD}')") == [[], ["dice", "ce", LONG]]
    assert browser.js("document.querySelector('.filter [name=class]').value") == ""
    browser.click("nav a[href='#cost']")
    assert browser.js("location.hash") == "#cost?dataset=synapse&model=net"


def test_the_filter_reads_models_from_the_headings_of_a_table(browser, frame, tmp_path):
    for model in ("unet", "net"):
        frame.cell("dice", model=model).case("dice", 0.5, model=model)
    heads = (Head("DSC (%)", 2, lower=False), Head("HD95 (mm)", 1, lower=True))
    columns = (Column("unet"), Column("net"), Column("unet"))
    rows = tuple(
        Row(name, tuple(Entry(float(v)) for v in values)) for name, values in (("a", (1, 20, 3)), ("b", (2, 3, 1)))
    )
    view = TableView("loss_by_model", "synapse", "Loss", heads, columns, (Block("", rows),))
    html = render("T", "", prepare(*frame.frames), {}, ["loss_by_model"], {}, views=[view], verdict="None.")
    (tmp_path / "t.html").write_text(html, encoding="utf-8")
    browser.open((tmp_path / "t.html").as_uri())
    choose(browser, "model", "net")
    shown = (
        "[...document.querySelectorAll('#loss_by_model :is(th, td)')].filter(c => c.offsetParent).map(c => c.innerText)"
    )
    assert browser.js(shown) == ["", "DSC (%) ↑", "Loss", "net", "a", "20.00", "b", "3.00"]
    browser.click("#loss_by_model tr:nth-child(2) th:nth-child(3) button")
    assert browser.js(shown)[4:] == ["a", "20.00", "b", "3.00"]  # higher is better: first the highest
    browser.click("#loss_by_model tr:nth-child(2) th:nth-child(3) button")
    assert browser.js(shown)[4:] == ["b", "3.00", "a", "20.00"]


STAGE = "#curves [data-dataset=synapse] [data-model=unet] .stage"


def test_curves_are_read_by_pointer_and_keys_hidden_and_zoomed(browser, url):
    browser.open(url)
    tip = f"document.querySelector('{STAGE} .tip').innerText"
    lines = f"document.querySelectorAll('{STAGE} .line').length"
    ticks = f"[...document.querySelectorAll('{STAGE} .axes text')].map(t => t.textContent).join()"
    assert browser.js(lines) == 3
    # Bottom left: at epoch 0 the lowest line is ce, mean of 1.58 and 2.58.
    browser.mouse("mouseMoved", browser.at(STAGE, 0.11, 0.4))
    assert browser.js(tip).replace("\n", " ") == "ce epoch 0: 2.08 (1.58 to 2.58, 2 runs)"
    browser.js(f"document.querySelector('{STAGE}').focus()")
    browser.key("ArrowRight")
    assert "epoch 1: 1.08 (0.58 to 1.58, 2 runs)" in browser.js(tip)
    said = "document.querySelector('#curves [data-dataset=synapse] [data-model=unet] output').textContent"
    assert browser.js(said) == "ce, epoch 1, 1.08 (0.58 to 1.58, 2 runs)"
    browser.key("ArrowUp")
    assert browser.js(tip).startswith("dice")
    whole = browser.js(ticks)
    for change in (
        lambda: browser.key("+"),
        lambda: browser.drag(STAGE, (0.3, 0.3), (0.6, 0.6)),
        lambda: wheel(browser),
    ):
        change()
        assert browser.js(ticks) != whole
        browser.key("0")
        assert browser.js(ticks) == whole
    browser.click("#curves [data-dataset=synapse] .legend button")
    assert browser.js(lines) == 2
    assert browser.js("document.querySelector('#curves .legend button').ariaPressed") == "false"
    browser.click("#curves [data-dataset=synapse] .legend button")
    assert browser.js(lines) == 3
    # What diverged is drawn dotted, with a cross at its end.
    assert browser.js(f"document.querySelectorAll('{STAGE.replace('=unet', '=net')} .line').length") == 2 + 2 * 2
    assert browser.complaints() == []


def wheel(browser):
    browser.mouse("mouseWheel", browser.at(STAGE), deltaX=0, deltaY=-100)
    browser.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_wheel_scrolls_the_page_over_a_drawing_without_focus(browser, url):
    browser.open(url)
    at = browser.at(STAGE)
    before = browser.js("scrollY")
    browser.mouse("mouseWheel", at, deltaX=0, deltaY=100)
    wait_for(lambda: browser.js("scrollY") > before, "the page to scroll", 60)


VIEW = "#qualitative [data-dataset=synapse] .viewer"


def test_the_slice_viewer_steps_swaps_and_zooms(browser, url):
    browser.open(url)
    names = f"[...document.querySelectorAll('{VIEW} .name')].map(n => n.textContent)"
    drawn = f"document.querySelector('{VIEW} .pane:last-child .contour').getAttribute('d')"
    boxes = f"[...document.querySelectorAll('{VIEW} .slice svg')].map(s => s.getAttribute('viewBox'))"
    assert browser.js(names) == ["image", "reference", "A: dice"]
    assert browser.js(f"document.querySelectorAll('{VIEW} image').length") == 3
    first = browser.js(drawn)
    browser.js(f"document.querySelector('{VIEW} input[type=range]').focus()")
    browser.key("ArrowRight")
    assert browser.js(names)[2] == "A: ce" and browser.js(drawn) == ""  # ce found nothing here
    assert browser.js(f"document.querySelector('{VIEW} input[type=range]').getAttribute('aria-valuetext')") == "ce"
    browser.js(f"document.querySelector('{VIEW} .pane:last-child .slice').focus()")
    browser.key("x")
    assert browser.js(names)[2] == "B: reference" and browser.js(drawn) not in ("", first)
    whole = browser.js(boxes)
    browser.key("+")
    assert len(set(browser.js(boxes))) == 1 and browser.js(boxes) != whole  # all panes together
    browser.key("ArrowRight")
    browser.drag(f"{VIEW} .pane:last-child .slice", (0.5, 0.5), (0.6, 0.5))
    browser.key("0")
    assert browser.js(boxes) == whole
    # The button shows the region where the losses are wrong most often, in all panes.
    browser.click(f"{VIEW} .tools button[title^=Where]")
    zoom = browser.js(f"JSON.parse(document.querySelector('{VIEW}').dataset.viewer).zoom")
    x, y, w, h = (float(v) for v in browser.js(boxes)[0].split())
    assert len(set(browser.js(boxes))) == 1 and browser.js(boxes) != whole
    inner, outer = (zoom[0], zoom[1], -zoom[0] - zoom[2], -zoom[1] - zoom[3]), (x, y, -x - w, -y - h)
    assert all(i >= o - 1e-6 for i, o in zip(inner, outer, strict=True))
    browser.js(f"document.querySelector('{VIEW} .pane:last-child .slice').focus()")
    browser.key("0")
    # Without the licence to show voxels: no image, and none is in the page.
    bare = "#qualitative [data-dataset=acdc]"
    assert browser.js(f"[...document.querySelectorAll('{bare} .name')].map(n => n.textContent)") == [
        "reference",
        "A: dice",
    ]
    assert browser.js(f"document.querySelectorAll('{bare} image').length") == 0
    assert "data:image" not in browser.js(f"document.querySelector('{bare}').outerHTML")
    assert browser.complaints() == []


CONTRAST = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = node => { for (let at = node; at; at = at.parentElement) {
    const c = parse(getComputedStyle(at).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return null; };
  const cell = node => { const svg = node.closest("svg"); if (!svg) return null;  // what is drawn under a label
    const b = node.getBoundingClientRect(), x = b.x + b.width / 2, y = b.y + b.height / 2; let found = null;
    for (const s of svg.querySelectorAll("path, rect")) { const r = s.getBoundingClientRect(), style = getComputedStyle(s);
      if (style.fill === "none" || style.fillOpacity !== "1" || s.closest("defs") || !(s.compareDocumentPosition(node) & 4)) continue;
      if (r.x <= x && x <= r.right && r.y <= y && y <= r.bottom) found = parse(style.fill).slice(0, 3); }
    return found; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = new Set();
  let seen = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || node.closest("script, style, option, .vh")) continue;
    const style = getComputedStyle(node), ink = parse(node.closest("svg") ? style.fill : style.color), paper = cell(node) ?? under(node);
    const [a, b] = [light(ink.slice(0, 3)), light(paper)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    seen += 1;
    if (ratio < 4.5) poor.add(`${node.tagName}.${node.getAttribute("class")} ${style.color} on ${paper}: ${ratio.toFixed(2)}`);
  }
  return [seen, [...poor]];
})()""".replace("\\\\", "\\")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_four_and_a_half(browser, url, scheme):
    browser.open(url, scheme=scheme)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.js(
        "document.querySelectorAll('#qualitative .tools button:last-child, .legend button').forEach(b => b.click())"
    )
    seen, poor = browser.js(CONTRAST)
    assert seen > 300 and poor == []


def test_dark_follows_the_system_and_the_button(browser, url):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(url, scheme="dark")
    dark = browser.js(paper)
    browser.click(".theme")
    light = browser.js(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    browser.open(url, scheme="light")
    browser.click(".theme")  # the choice for light is kept, and undone
    assert browser.js(paper) == dark and browser.js("document.querySelector('.theme').textContent") == "Light colours"
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.js(paper) == light  # paper is white whatever was chosen
    browser.open(url)
    browser.js("localStorage.clear()")


def test_print_fits_and_shows_the_figures(browser, url):
    browser.open(url, width=718, media="print")  # A4 less its margins
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js("document.scrollingElement.scrollWidth") <= 718
    assert browser.js("[...document.querySelectorAll('.live, nav')].every(e => !e.checkVisibility())")
    assert browser.js("[...document.querySelectorAll('figure .plot svg')].every(e => e.checkVisibility())")


def test_the_runs_can_be_searched(browser, url):
    browser.open(url)
    browser.js("document.querySelector('#provenance details:last-of-type').open = true")
    browser.click(".search input")
    for letter in "acdc dice":
        browser.key(letter)
    shown = (
        "[...document.querySelectorAll('.runs tbody tr')].filter(r => r.offsetParent).map(r => r.cells[0].textContent)"
    )
    assert browser.js(shown) == ["dice", "dice"]
    assert browser.js("document.querySelector('.search output').textContent") == "2 of 18 runs"


def test_headings_names_and_focus(browser, url):
    browser.open(url)
    levels = browser.js("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    bare = browser.js("""[...document.querySelectorAll('button, input, select, svg[role=img], [role=region], [role=application]')]
      .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).map(e => e.outerHTML)""")
    assert bare == []
    # Every stop of the Tab key shows where it is.
    unseen = []
    for _ in range(40):
        browser.key("Tab")
        ring = browser.js(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); return [e.outerHTML.slice(0, 80), s.outlineStyle, s.outlineWidth]; })()"
        )
        if ring[1] == "none" or ring[2] == "0px":
            unseen.append(ring)
    assert unseen == []


NASTY = "<b>Lov\u00e1sz</b> \"'/..\\&amp; $x_1$ _{{ 7*7 }} \u6f22\u5b57 `${1}` </script><script>alert(1)</script>"


def test_names_with_signs_of_html_quotes_and_slashes_are_text_in_every_part_of_the_page(browser, frame, tmp_path):
    for model in (NASTY, "net"):
        at = {"dataset": NASTY, "model": model}
        for loss, value in ((NASTY, 0.7), ("dice", 0.6), ("ce", 0.5)):
            for seed in (0, 1):
                frame.curve(f"t{len(frame.cell_rows)}", [1.0, 0.5])
                frame.cell(loss, seed, command=f"bench run --only loss={loss}", **at)
                for i, patient in enumerate(("p", NASTY)):
                    for name in (NASTY, "b"):
                        more = {"seed": seed, "patient": patient, "class": name, **at}
                        frame.case(loss, value + 0.01 * i + 0.005 * seed, **more)
                        frame.case(loss, 9 - value, metric="hd95", **more)
    frame.cell(NASTY, 2, "error", message=NASTY, dataset=NASTY, model=NASTY)
    cells, cases, curves = frame.frames
    curves = curves.assign(val_dice=0.5)
    truth = np.zeros((20, 24), dtype=int)
    truth[5:12, 6:15] = 1
    panels = [Panel(NASTY, NASTY, NASTY, truth * 9.0, truth, {NASTY: np.roll(truth, 2, 1), "ce": truth}, {1: NASTY})]
    about = {"suite": NASTY, "commands": [NASTY], "data": [{NASTY: NASTY}], "notes": [NASTY], NASTY: NASTY}
    page = write_report(NASTY, NASTY, cells, cases, curves, tmp_path / "r", about=about, panels=panels)
    browser.open(page.as_uri(), width=390)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for button in (".legend button", "#leaderboard th button", "#qualitative .tools button"):
        browser.js(f"document.querySelectorAll('{button}').forEach(b => b.click())")
    choose(browser, "model", " ".join(NASTY.replace("_", " ").split()))
    assert browser.js(f"{NAMES}('#leaderboard table').flat().includes({json.dumps(NASTY)})")
    # no element came of a name, none ran, and each place where names stand shows this one letter by letter
    assert browser.js("document.querySelectorAll('main b:not(.tip b), script:not(:last-of-type)').length") == 0
    for place in ("h1", ".failures, #failures td.text", ".legend button", ".key li", ".which", "option", "#notes li"):
        texts = f"[...document.querySelectorAll({json.dumps(place)})].map(e => e.textContent.trim())"
        shown = {" ".join(t.split()) for t in browser.js(texts)}
        names = {" ".join(n.split()) for n in (NASTY, NASTY.replace("_", " "))}
        assert shown & names, (place, shown)
    browser.mouse("mouseMoved", browser.at("#curves .stage", 0.11, 0.4))
    assert browser.js("document.querySelector('#curves .tip b').textContent") in (NASTY, "dice", "ce")
    assert browser.js("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth") == 0
    assert browser.complaints() == []
    for table in sorted((page.parent / "tables").glob("*.html")):
        browser.open(table.as_uri())
        assert browser.js("document.querySelectorAll('main b, script').length") == 0, table
        sheet = browser.js("getComputedStyle(document.body).getPropertyValue('--paper')")
        assert sheet == "#ffffff", table  # the shared sheet is found


def test_curves_of_validation_are_read_zoomed_and_filtered_like_those_of_training(browser, frame, tmp_path):
    for loss, value in (("dice", 0.7), ("ce", 0.4)):
        frame.curve(f"t{len(frame.cell_rows)}", [1.0, 0.5, 0.3]).cell(loss).case(loss, value)
    cells, cases, curves = frame.frames
    curves = curves.assign(val_dice=[0.1, 0.5, 0.7, 0.05, 0.3, 0.4], val_hd95=[9.0, 5.0, 2.0, 9.0, 6.0, 4.0])
    page = write_report("T", "", cells, cases, curves, tmp_path / "r")
    browser.open(page.as_uri())
    stages = "document.querySelectorAll('#validation .stage').length"
    assert browser.js(stages) == 2  # one for each metric
    labels = "[...document.querySelectorAll('#validation .stage')].map(s => [...s.querySelectorAll('.axes text')].at(-1).textContent)"
    assert browser.js(labels) == ["validation DSC (%)", "validation HD95"]
    stage = "#validation > figure:first-of-type .stage"
    browser.mouse("mouseMoved", browser.at(stage, 0.97, 0.1))
    tip = f"document.querySelector('{stage} .tip').innerText"
    assert browser.js(tip).replace("\n", " ") == "dice epoch 2: 70"
    ticks = f"[...document.querySelectorAll('{stage} .axes text')].map(t => t.textContent).join()"
    whole = browser.js(ticks)
    browser.js(f"document.querySelector('{stage}').focus()")
    browser.key("+")
    assert browser.js(ticks) != whole
    browser.click("#validation .legend button")
    assert browser.js(f"document.querySelectorAll('{stage} .line').length") == 1
    assert browser.complaints() == []


def test_charts_of_validation_share_their_scale_and_those_of_the_loss_do_not(browser, frame, tmp_path):
    for model, value in (("unet", 0.5), ("transunet", 0.9)):
        frame.curve(f"t{len(frame.cell_rows)}", [value, 2 * value]).cell("dice", model=model).case(
            "dice", 0.5, model=model
        )
    cells, cases, curves = frame.frames
    curves = curves.assign(val_dice=[0.1, 0.2, 0.8, 0.9])
    page = write_report("T", "", cells, cases, curves, tmp_path / "r")
    browser.open(page.as_uri())
    heights = "[...document.querySelectorAll('#%s .stage')].map(s => [...s.querySelectorAll('.axes text[text-anchor=end]')].map(t => t.textContent).join())"
    first, second = browser.js(heights % "validation")
    assert first == second and "80" in first and "20" in first
    first, second = browser.js(heights % "curves")
    assert first != second
    assert browser.complaints() == []


def test_curves_of_one_epoch_are_points_with_the_range_of_their_runs(browser, frame, tmp_path):
    for loss, seed, value in (("dice", 0, 0.5), ("dice", 1, 0.7), ("ce", 0, 0.9)):
        frame.curve(f"t{len(frame.cell_rows)}", [value]).cell(loss, seed).case(loss, 0.5, seed=seed)
    browser.open(write_report("T", "", *frame.frames, tmp_path / "r").as_uri())
    seen = f"[...document.querySelectorAll('{STAGE} %s')].map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])"
    assert browser.js(seen % ".alone") == [[7, 7], [7, 7]]
    assert browser.js(f"getComputedStyle(document.querySelector('{STAGE} .band')).strokeWidth") == "4px"
    ((_, height),) = browser.js(seen % ".band")
    assert height > 50  # from 0.5 to 0.7 where the axis spans little more than 0.5 to 0.9
    assert browser.complaints() == []
