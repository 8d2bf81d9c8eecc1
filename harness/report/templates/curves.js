// Curves over epochs drawn from their numbers: read a value, hide a loss, zoom. Print and pages without scripts keep the figure.
{
  const MARGIN = { left: 56, right: 14, top: 24, bottom: 38 };
  let serial = 0;

  const shown = value => {
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
    return text.replaceAll("-", "\u2212");
  };
  const ticks = (low, high, n) => {
    const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(k => k * power).find(s => s >= rough);
    const out = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) out.push(i * step);
    return out.length < 3 && n < 50 ? ticks(low, high, 2 * n) : out;
  };
  const logTicks = (low, high) => {  // low and high as powers of ten
    const out = [];
    for (let p = Math.floor(low); p <= high; p += 1) {
      for (const k of high - low > 3 ? [1] : [1, 2, 5]) {
        const at = p + Math.log10(k);
        if (at >= low && at <= high) out.push(at);
      }
    }
    return out.length > 1 ? out : ticks(low, high, 4);
  };

  // what diverged leaves the frame, as in the figure
  const drawn = model => model.lines.length ? model.lines : model.diverged;

  const chart = (model, scale, losses, hidden, title, label) => {
    const up = model.log ? Math.log10 : value => value, down = model.log ? v => 10 ** v : v => v;
    const xs = drawn(model).flatMap(line => line.x);
    const ys = scale.flatMap(drawn).flatMap(line => [...(line.lo ?? line.y), ...(line.hi ?? line.y)]).map(up);
    const span = (values, rim) => {
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      const more = (high - low || Math.abs(high) || 1) * rim;
      return [low - more, high + more];
    };
    const full = { x: span(xs, 0.02), y: span(ys, 0.05) };
    let view = { x: [...full.x], y: [...full.y] }, size = [600, 320], at = null, box = null;
    const clip = `clip-${serial += 1}`;
    const tip = make("div", { class: "tip", "aria-hidden": "true" }), said = make("output", { class: "vh" });
    const stage = make("div", { class: "stage", tabindex: "0", role: "application",
      "aria-label": `${title}. Arrow keys read values, plus and minus zoom, Shift with arrows moves, 0 resets.` });

    const plot = () => [size[0] - MARGIN.left - MARGIN.right, size[1] - MARGIN.top - MARGIN.bottom];
    const px = x => MARGIN.left + (x - view.x[0]) / (view.x[1] - view.x[0]) * plot()[0];
    const py = v => MARGIN.top + (1 - (v - view.y[0]) / (view.y[1] - view.y[0])) * plot()[1];
    const path = (x, y) => x.map((e, i) => `${i ? "L" : "M"}${px(e).toFixed(1)} ${py(up(y[i])).toFixed(1)}`).join("");
    const visible = () => [...model.lines, ...model.diverged].filter(line => !hidden.has(line.loss));
    const positive = line => !model.log || line.y.every(v => v > 0);

    const axes = () => {
      const [w, h] = plot(), out = draw("g", { class: "axes" }), bottom = MARGIN.top + h;
      for (const v of model.log ? logTicks(...view.y) : ticks(...view.y, Math.max(2, h / 55))) {
        out.append(draw("line", { x1: MARGIN.left, x2: MARGIN.left + w, y1: py(v), y2: py(v) }),
          draw("text", { x: MARGIN.left - 7, y: py(v) + 4, "text-anchor": "end" }, shown(down(v))));
      }
      for (const x of ticks(...view.x, Math.max(2, w / 70)).filter(v => Math.abs(v - Math.round(v)) < 1e-9)) {
        out.append(draw("text", { x: px(x), y: bottom + 16, "text-anchor": "middle" }, String(Math.round(x))));
      }
      out.append(draw("text", { x: MARGIN.left + w / 2, y: bottom + 33, "text-anchor": "middle" }, "epoch"),
        draw("text", { x: 4, y: 12 }, `${label}${model.log ? ", logarithmic" : ""}`));
      return out;
    };
    const curves = () => {
      const [w, h] = plot();
      const frame = draw("clipPath", { id: clip }, draw("rect", { x: MARGIN.left, y: MARGIN.top, width: w, height: h }));
      const out = draw("g", { "clip-path": `url(#${clip})` });
      for (const line of visible().filter(positive)) {
        const loss = losses[line.loss], lost = model.diverged.includes(line), alone = line.x.length === 1;
        if (line.hi && !lost) {
          const back = path([...line.x].reverse(), [...line.lo].reverse()).replace("M", "L");
          const rim = alone ? { stroke: loss.colour, "stroke-width": 4 } : {};  // an area without width is not seen
          out.append(draw("path", { d: `${path(line.x, line.hi)}${back}Z`, fill: loss.colour, class: "band", ...rim }));
        }
        const dash = lost ? "1 3" : loss.dash.map(v => v * 2).join(" ");
        out.append(draw("path", { d: path(line.x, line.y), stroke: loss.colour, "stroke-dasharray": dash, fill: "none",
          class: at?.line === line ? "line near" : "line" }));
        if (alone && !lost) {  // nor is a line of one point
          out.append(draw("circle", { cx: px(line.x[0]), cy: py(up(line.y[0])), r: 3.5, fill: loss.colour, class: "alone" }));
        }
        if (lost) {
          const end = [px(line.x.at(-1)), clamp(py(up(line.y.at(-1))), MARGIN.top + 5, MARGIN.top + h - 5)];
          out.append(draw("path", { d: `M${end[0] - 4} ${end[1] - 4}l8 8m0 -8l-8 8`, stroke: loss.colour, class: "line" }));
        }
      }
      return [frame, out];
    };
    const reading = () => {
      tip.hidden = !at;
      if (!at) return [];
      const { line, i } = at, x = px(line.x[i]), y = py(up(line.y[i])), loss = losses[line.loss];
      const range = line.hi ? ` (${shown(line.lo[i])} to ${shown(line.hi[i])}, ${line.runs} runs)` : "";
      const words = [loss.name, `epoch ${line.x[i]}`, `${shown(line.y[i])}${range}`];
      tip.replaceChildren(make("b", {}, words[0]), make("br"), `${words[1]}: ${words[2]}`);
      said.textContent = words.join(", ");
      tip.style.left = `${clamp(x + 12, 0, Math.max(0, size[0] - tip.offsetWidth - 2))}px`;
      tip.style.top = `${clamp(y - tip.offsetHeight - 10, 0, size[1])}px`;
      return [draw("line", { x1: x, x2: x, y1: MARGIN.top, y2: size[1] - MARGIN.bottom, class: "cross" }),
        draw("circle", { cx: x, cy: y, r: 4, fill: loss.colour, class: "dot" })];
    };
    const render = () => {
      if (at && hidden.has(at.line.loss)) at = null;
      const root = draw("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, width: size[0], height: size[1], "aria-hidden": "true" });
      root.append(axes(), ...curves(), ...reading());
      if (box) {
        const [x0, x1] = [box[0][0], box[1][0]].map(v => v * size[0]).sort((a, b) => a - b);
        const [y0, y1] = [box[0][1], box[1][1]].map(v => v * size[1]).sort((a, b) => a - b);
        root.append(draw("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: "box" }));
      }
      stage.querySelector("svg")?.remove();
      stage.prepend(root);
    };

    const value = (fx, fy) => [
      view.x[0] + (fx * size[0] - MARGIN.left) / plot()[0] * (view.x[1] - view.x[0]),
      view.y[0] + (1 - (fy * size[1] - MARGIN.top) / plot()[1]) * (view.y[1] - view.y[0]),
    ];
    const fit = (low, high, whole) => {  // inside the whole range, and never narrower than a thousandth of it
      const width = clamp(high - low, (whole[1] - whole[0]) / 1000, whole[1] - whole[0]);
      const start = clamp((low + high - width) / 2, whole[0], whole[1] - width);
      return [start, start + width];
    };
    const act = {
      zoom: (factor, fx, fy) => {
        const middle = value(fx, fy);
        ["x", "y"].forEach((axis, i) => {
          view[axis] = fit(...view[axis].map(edge => middle[i] + (edge - middle[i]) / factor), full[axis]);
        });
        render();
      },
      drag: (from, to, done) => {
        box = from && !done ? [from, to] : null;
        if (from && done && Math.abs(to[0] - from[0]) * size[0] > 6 && Math.abs(to[1] - from[1]) * size[1] > 6) {
          const a = value(...from), b = value(...to);
          ["x", "y"].forEach((axis, i) => { view[axis] = fit(Math.min(a[i], b[i]), Math.max(a[i], b[i]), full[axis]); });
        }
        render();
      },
      reset: () => { view = { x: [...full.x], y: [...full.y] }; render(); },
      zoomed: () => ["x", "y"].some(axis => view[axis][1] - view[axis][0] < 0.9999 * (full[axis][1] - full[axis][0])),
      middle: () => (at ? [px(at.line.x[at.i]) / size[0], py(up(at.line.y[at.i])) / size[1]] : [0.5, 0.5]),
      arrow: (dx, dy, shift) => {
        if (shift) {
          const move = (axis, part) => {
            const step = part * (view[axis][1] - view[axis][0]) / 8;
            view[axis] = fit(...view[axis].map(edge => edge + step), full[axis]);
          };
          move("x", dx);
          move("y", -dy);
        } else if (visible().length) {
          const lines = visible();
          const here = at ?? { line: lines[0], i: dx < 0 ? lines[0].x.length : -1 };
          const line = dy ? lines[(lines.indexOf(here.line) + (at ? dy : 0) + lines.length) % lines.length] : here.line;
          at = { line, i: clamp(here.i + dx, 0, line.x.length - 1) };
        }
        render();
      },
    };
    const point = event => {
      const edge = stage.getBoundingClientRect(), mx = event.clientX - edge.left, my = event.clientY - edge.top;
      let best = null;
      for (const line of visible().filter(positive)) {
        let i = 0;
        line.x.forEach((x, j) => { if (Math.abs(px(x) - mx) < Math.abs(px(line.x[i]) - mx)) i = j; });
        const away = Math.abs(py(up(line.y[i])) - my) + Math.abs(px(line.x[i]) - mx);
        if (!best || away < best.away) best = { line, i, away };
      }
      at = best;
      if (!box) render();
    };
    for (const kind of ["pointerdown", "pointermove"]) stage.addEventListener(kind, point);
    stage.addEventListener("pointerleave", () => { at = null; render(); });
    zoomable(stage, act);
    stage.append(tip);
    new ResizeObserver(() => {
      const width = Math.floor(stage.clientWidth);
      if (width < 50 || width === size[0]) return;
      size = [width, Math.round(clamp(width * 0.6, 230, 360))];
      render();
    }).observe(stage);
    render();
    const head = make("div", { class: "tools" }, make("h4", {}, model.name), zoomButtons(act));
    return { node: make("figure", { "data-model": model.name }, head, stage, said), render };
  };

  document.querySelectorAll(".charts").forEach(host => {
    const { title, label, alike, losses, models } = JSON.parse(host.dataset.charts), hidden = new Set();
    const made = models.map(model => chart(model, alike ? models : [model], losses, hidden, `${title}, ${model.name}`, label));
    const legend = make("div", { class: "legend", role: "group", "aria-label": "Losses shown" });
    losses.forEach((loss, k) => {
      const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(loss), loss.name);
      button.addEventListener("click", () => {
        if (!hidden.delete(k)) hidden.add(k);
        button.setAttribute("aria-pressed", String(!hidden.has(k)));
        for (const one of made) one.render();
      });
      legend.append(button);
    });
    const all = make("button", { type: "button", class: "plain" }, "All or none");
    all.addEventListener("click", () => {
      const hide = hidden.size === 0;
      losses.forEach((_, k) => (hide ? hidden.add(k) : hidden.delete(k)));
      for (const button of legend.querySelectorAll("[aria-pressed]")) button.setAttribute("aria-pressed", String(!hide));
      for (const one of made) one.render();
    });
    if (losses.length > 2) legend.append(all);
    const caption = host.closest("figure").querySelector("figcaption");
    const hint = "Point at a curve to read it, drag a box or use the wheel after a click to zoom, double-click to reset.";
    host.append(legend,
      make("div", { class: "grid" }, ...made.map(one => one.node)),
      make("p", { class: "note" }, `${caption?.textContent ?? ""} ${hint}`));
  });
}
