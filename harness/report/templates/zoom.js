// One way to zoom for curves and slices: wheel once it has the focus (or with Ctrl), drag, keys, buttons.
const zoomable = (stage, act) => {
  const place = event => {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  stage.addEventListener("wheel", event => {
    if (!event.ctrlKey && !stage.matches(":focus")) return;  // an unfocused drawing does not stop the page's scrolling
    if (event.deltaY > 0 && !act.zoomed()) return;  // nothing left to zoom out of: the page scrolls on
    event.preventDefault();
    act.zoom(event.deltaY < 0 ? 1.25 : 0.8, ...place(event));
  }, { passive: false });
  let from = null;
  stage.addEventListener("pointerdown", event => {
    if (event.button !== 0 || event.pointerType === "touch") return;  // a finger scrolls the page
    from = place(event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", event => { if (from) act.drag(from, place(event), false); });
  stage.addEventListener("pointerup", event => {
    if (from) act.drag(from, place(event), true);
    from = null;
  });
  stage.addEventListener("pointercancel", () => { from = null; act.drag(null, null, true); });
  stage.addEventListener("dblclick", () => act.reset());
  stage.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) act.arrow(...steps[event.key], event.shiftKey);
    else if (event.key === "+" || event.key === "=") act.zoom(1.25, ...act.middle());
    else if (event.key === "-") act.zoom(0.8, ...act.middle());
    else if (event.key === "0" || event.key === "Escape") act.reset();
    else return;
    event.preventDefault();
  });
};
const zoomButtons = act => {
  const button = (text, label, run) => {
    const node = make("button", { type: "button", "aria-label": label, title: label }, text);
    node.addEventListener("click", run);
    return node;
  };
  return make("span", { class: "zoom", role: "group", "aria-label": "Zoom" },
    button("+", "Zoom in", () => act.zoom(1.25, ...act.middle())),
    button("\u2212", "Zoom out", () => act.zoom(0.8, ...act.middle())),
    button("Reset", "Reset the zoom", () => act.reset()));
};
const draw = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const swatch = ({ colour, dash }) => draw("svg", { width: 26, height: 10, "aria-hidden": "true" },
  draw("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dash.map(v => v * 2).join(" ") }));
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
