// A slice and what each loss predicted there: a slider through the losses, a second layer to compare with, zoom.
document.querySelectorAll(".viewer").forEach(host => {
  const { width, height, image, zoom, classes, layers } = JSON.parse(host.dataset.viewer), title = host.dataset.title;
  let view = [0, 0, width, height], loss = 1, other = 0, swapped = false, outline = true;
  const panes = [];

  const contours = (layer, dotted) => classes.map((one, k) => draw("path", {
    d: layer.paths[k], fill: "none", stroke: dotted ?? one.colour, class: dotted ? "outline" : "contour",
    ...(dotted || !one.dash.length ? {} : { "stroke-dasharray": one.dash.map(v => v * 2).join(" ") }),
  }));
  const ground = () => (image
    ? draw("image", { href: image, x: 0, y: 0, width, height, preserveAspectRatio: "none" })
    : draw("rect", { x: 0, y: 0, width, height, class: "blank" }));
  const shownLayer = () => (swapped ? other : loss);

  const pane = layerOf => {
    const name = make("p", { class: "name" });
    const stage = make("div", { class: "slice", tabindex: "0", role: "application" });
    const render = () => {
      const index = layerOf(), layer = index === null ? null : layers[index];
      const mark = layerOf === shownLayer ? (swapped ? "B: " : "A: ") : "";
      name.textContent = layer ? mark + layer.name : "image";
      stage.setAttribute("aria-label", `${title}: ${name.textContent}. Plus and minus zoom, arrows move, 0 resets, X swaps.`);
      const root = draw("svg", { viewBox: view.join(" "), "aria-hidden": "true" }, ground());
      if (layer) {
        const reference = outline && index !== 0 ? contours(layers[0], image ? "#fff" : "currentColor") : [];
        root.append(...(image && reference.length ? layers[0].paths.map(d => draw("path", { d, fill: "none", class: "under" })) : []),
          ...contours(layer), ...reference);
      }
      stage.replaceChildren(root);
    };
    panes.push(render);
    zoomable(stage, act);
    stage.addEventListener("keydown", event => { if (event.key.toLowerCase() === "x") swap.click(); });
    return make("div", { class: "pane" }, stage, name);
  };
  const renderAll = () => { for (const render of panes) render(); };

  const keep = next => {
    const w = clamp(next[2], width / 40, width), h = w * height / width;
    view = [clamp(next[0], 0, width - w), clamp(next[1], 0, height - h), w, h];
    renderAll();
  };
  let start = null;
  const act = {
    zoom: (factor, fx, fy) => {
      const w = view[2] / factor, h = view[3] / factor;
      keep([view[0] + (view[2] - w) * fx, view[1] + (view[3] - h) * fy, w, h]);
    },
    drag: (from, to, done) => {
      start ??= [...view];
      if (from) keep([start[0] - (to[0] - from[0]) * view[2], start[1] - (to[1] - from[1]) * view[3], view[2], view[3]]);
      if (done) start = null;
    },
    reset: () => keep([0, 0, width, height]),
    zoomed: () => view[2] < width,
    middle: () => [0.5, 0.5],
    arrow: (dx, dy) => keep([view[0] + dx * view[2] / 8, view[1] + dy * view[3] / 8, view[2], view[3]]),
  };

  const slider = make("input", { type: "range", min: "1", max: String(layers.length - 1), value: "1", "aria-label": "Loss" });
  const named = make("output", { class: "which" });
  const against = make("select", {}, ...layers.map((layer, i) => make("option", { value: String(i) }, layer.name)));
  const swap = make("button", { type: "button", "aria-pressed": "false", title: "Key X on a slice" }, "A/B: show B");
  const dotted = make("input", { type: "checkbox" });
  dotted.checked = true;
  const label = () => {
    named.textContent = layers[loss].name;
    slider.setAttribute("aria-valuetext", layers[loss].name);
    renderAll();
  };
  slider.addEventListener("input", () => { loss = Number(slider.value); label(); });
  against.addEventListener("change", () => { other = Number(against.value); renderAll(); });
  swap.addEventListener("click", () => {
    swapped = !swapped;
    swap.setAttribute("aria-pressed", String(swapped));
    renderAll();
  });
  dotted.addEventListener("change", () => { outline = dotted.checked; renderAll(); });

  const entries = classes.map(one => make("li", {}, swatch(one), one.name.replaceAll("_", " ")));
  const key = make("ul", { class: "key", "aria-label": "Classes" }, ...entries);
  const figure = host.closest("figure"), whole = make("button", { type: "button", "aria-pressed": "false" }, "All losses at once");
  whole.addEventListener("click", () => {
    const on = figure.classList.toggle("whole");
    whole.setAttribute("aria-pressed", String(on));
  });
  const closer = make("button", { type: "button", title: "Where the losses are wrong most often" }, "Zoom to the errors");
  closer.addEventListener("click", () => {  // the whole region, at the shape of the slice
    const w = Math.max(zoom[2], zoom[3] * width / height), h = w * height / width;
    keep([zoom[0] + (zoom[2] - w) / 2, zoom[1] + (zoom[3] - h) / 2, w, h]);
  });
  host.append(
    make("div", { class: "tools" },
      make("label", { class: "slide" }, "A ", layers.length > 2 ? slider : "", named),
      make("label", {}, "B ", against), swap, make("label", {}, dotted, " reference, dotted"), zoomButtons(act),
      zoom ? closer : "", whole),
    make("div", { class: "panes" }, ...(image ? [pane(() => null)] : []), pane(() => 0), pane(shownLayer)),
    key);
  label();
});
