// Everything here adds to a page that is complete without it: tables sort, the theme can be chosen, the runs searched.
const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
document.documentElement.classList.add("js");

// The header cells above each column, from top to bottom, whatever they span.
const headings = table => {
  const columns = [];
  [...(table.tHead?.rows ?? [])].forEach((row, y) => {
    let x = 0;
    for (const cell of row.cells) {
      while (columns[x]?.[y]) x += 1;
      const width = Number(cell.dataset.span ?? cell.colSpan);  // a filter narrows what spans several columns
      for (let i = 0; i < width; i += 1) {
        for (let j = 0; j < cell.rowSpan; j += 1) (columns[x + i] ??= [])[y + j] = cell;
      }
      x += width;
    }
  });
  return columns;
};
const dataRows = body => [...body.rows].filter(row => row.cells.length > 1);

{
  const text = cell => (cell?.dataset.v ?? cell?.textContent ?? "").trim();
  const absent = word => word === "" || word === "–" || word === "n/a";
  // A number as the page writes it, followed by nothing but a spread, a unit or "/5"; else NaN.
  const number = word => {
    const plain = word.replaceAll("\u2212", "-").replace(/(\d)\u202f(?=\d)/g, "$1");
    const found = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?(?=$|[\s±%/(…])/i.exec(plain);
    return found ? Number(found[0]) : NaN;
  };

  const sortBy = (table, head, column) => {
    const cells = [...table.tBodies].flatMap(dataRows).map(row => text(row.cells[column])).filter(w => !absent(w));
    const numeric = head.dataset.kind !== "text" && cells.every(word => !Number.isNaN(number(word)));
    const above = headings(table)[column].map(cell => cell.textContent).join(" ");
    const first = head.dataset.first ?? (above.includes("↑") ? "descending" : "ascending");
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const cell of table.tHead.querySelectorAll("[aria-sort]")) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const x = text(a.cells[column]), y = text(b.cells[column]);
      if (absent(x) || absent(y)) return absent(x) - absent(y);  // rows without a value stay last
      return sign * (numeric ? number(x) - number(y) : x.localeCompare(y, "en", { numeric: true }));
    };
    // One body per model: losses are sorted within their model.
    for (const body of table.tBodies) body.append(...dataRows(body).sort(compare));
  };

  for (const table of document.querySelectorAll("main table")) {
    if ([...table.tBodies].every(body => dataRows(body).length < 2)) continue;
    headings(table).forEach((above, column) => {
      const head = above.at(-1);
      if (!head || head.colSpan > 1 || head.tagName !== "TH" || head.dataset.kind === "strip") return;
      const button = make("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sortBy(table, head, column));
    });
  }
}

{
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)");
  const memory = {  // a browser may refuse storage to a file; then the choice lasts as long as the page
    get: () => { try { return localStorage.getItem("bench-theme"); } catch { return null; } },
    set: value => { try { localStorage.setItem("bench-theme", value); } catch { /* not kept */ } },
  };
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const button = make("button", { type: "button", class: "theme" });
  const show = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
  const known = memory.get();
  if (known === "dark" || known === "light") root.dataset.theme = known;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    memory.set(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  show();
  document.querySelector("header.top").prepend(button);
}

for (const place of document.querySelectorAll(".search")) {
  const rows = [...place.parentElement.querySelectorAll("tbody tr")];
  const field = make("input", { type: "search", spellcheck: "false" }), found = make("output");
  const texts = rows.map(row => row.textContent.toLowerCase());
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, i) => row.classList.toggle("unfound", !words.every(word => texts[i].includes(word))));
    const left = rows.filter(row => !row.classList.contains("unfound")).length;
    found.textContent = words.length ? (left ? `${left} of ${rows.length} runs` : "No run holds these words.") : "";
  };
  field.addEventListener("input", show);
  place.append(make("label", {}, `${place.dataset.of} `, field), " ", found);
}

addEventListener("beforeprint", () => {
  for (const closed of document.querySelectorAll("details:not([open])")) {
    closed.open = true;
    closed.dataset.forPrint = "";
  }
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-for-print]")) {
    opened.open = false;
    delete opened.dataset.forPrint;
  }
});
