// Filter by data set, model, metric and class. What is shown stands in the address: #section?model=unet.
{
  const main = document.querySelector("main"), facets = JSON.parse(main.dataset.facets);
  const titles = { dataset: "Data set", model: "Model", metric: "Metric", class: "Class" };
  const plain = text => text.replace(/[↑↓]/g, "").replaceAll("_", " ").replace(/\s+/g, " ").trim();
  const kinds = Object.keys(titles).filter(kind => facets[kind].length > 1);
  const chosen = Object.fromEntries(kinds.map(kind => [kind, ""])), selects = {};
  const known = Object.fromEntries(kinds.map(kind => [kind, new Set(facets[kind].map(plain))]));
  const status = make("output");
  // The text of a heading without what stands above it in small print.
  const named = cell => {
    const copy = cell.cloneNode(true);
    for (const small of copy.querySelectorAll(".profile, .axis, .vh")) small.remove();
    return plain(copy.textContent);
  };

  // What a table's columns are about: marked by its maker, or read from its headings.
  const describe = table => {
    const columns = headings(table).map(above => {
      const of = {}, words = above.map(named);
      for (const kind of kinds) {
        const marked = above.find(cell => cell.dataset[kind])?.dataset[kind];
        const word = marked ? plain(marked) : words.find(w => known[kind]?.has(w));
        if (word) of[kind] = word;
      }
      return { above, of, title: words.at(-1) };
    });
    if (columns.length) columns[0].of = {};  // the names of the rows always stay
    const named_by = {};
    columns.forEach((column, x) => {
      const kind = kinds.find(k => titles[k] === column.title);
      if (kind) named_by[kind] = x;
    });
    for (const cell of table.querySelectorAll("thead th, thead td")) cell.dataset.span ??= cell.colSpan;
    return { table, columns, named_by, box: table.closest(".scroll") ?? table };
  };
  const tables = kinds.length ? [...main.querySelectorAll("table")].map(describe) : [];

  const keeps = (kind, value) => !chosen[kind] || plain(value) === chosen[kind];
  const blockKept = node => {
    for (let at = node; at && at !== main; at = at.parentElement) {
      if (["dataset", "model"].some(kind => at.dataset[kind] && !keeps(kind, at.dataset[kind]))) return false;
    }
    return true;
  };
  const notice = (after, on, text) => {
    let node = after.nextElementSibling?.classList.contains("nothing") ? after.nextElementSibling : null;
    if (on && !node) after.after(node = make("p", { class: "note nothing" }, text));
    if (node) node.hidden = !on;
  };

  const filterTable = ({ table, columns, named_by, box }) => {
    const shown = columns.map(({ of }) => Object.entries(of).every(([kind, value]) => keeps(kind, value)));
    const widths = new Map();
    columns.forEach(({ above }, x) => {
      for (const cell of new Set(above)) widths.set(cell, (widths.get(cell) ?? 0) + shown[x]);
    });
    for (const [cell, width] of widths) {
      cell.hidden = width === 0;
      cell.colSpan = Math.max(1, width);
    }
    let left = 0;
    for (const body of table.tBodies) {
      const title = body.querySelector("th.model"), name = plain(body.dataset.model ?? title?.textContent ?? "");
      const blockFits = kinds.every(kind => !known[kind].has(name) || keeps(kind, name));
      let here = 0;
      for (const row of dataRows(body)) {
        const fits = Object.entries(named_by).every(([kind, x]) => keeps(kind, row.cells[x].textContent));
        row.hidden = !fits || !blockFits;
        [...row.cells].forEach((cell, x) => { cell.hidden = !shown[x]; });
        here += !row.hidden;
      }
      if (title) {
        title.parentElement.hidden = here === 0;
        title.colSpan = shown.filter(Boolean).length;
      }
      left += here;
    }
    const facetted = columns.some(({ of }) => Object.keys(of).length);
    const empty = left === 0 || (facetted && !columns.some(({ of }, x) => shown[x] && Object.keys(of).length));
    box.hidden = empty;
    notice(box, empty, "Nothing in this table passes the filter.");
    return empty ? 0 : left;
  };

  const apply = () => {
    for (const node of main.querySelectorAll(":is(div, figure)[data-dataset], :is(div, figure)[data-model]")) {
      node.hidden = !blockKept(node);
    }
    const rows = tables.map(one => filterTable(one) * blockKept(one.table));
    for (const section of main.querySelectorAll("section")) {
      const blocks = [...section.querySelectorAll(":is(div, figure)[data-dataset], :is(div, figure)[data-model]")];
      const none = blocks.length > 0 && blocks.every(node => node.closest("[hidden]"));
      notice(section.querySelector("h2"), none, "Nothing in this section passes the filter.");
    }
    const set = kinds.filter(kind => chosen[kind]);
    const onBoards = tables.reduce((sum, one, i) => sum + (one.table.matches(".board") ? rows[i] : 0), 0);
    const parts = [];
    if (set.length) parts.push(onBoards ? `${onBoards} rows in the leaderboard.` : "This filter leaves nothing.");
    if (chosen.class) parts.push("The leaderboard stays the mean over classes.");
    status.textContent = parts.join(" ");
    reset.hidden = set.length === 0;
  };

  const query = () => new URLSearchParams(Object.entries(chosen).filter(([, value]) => value)).toString();
  const anchor = () => location.hash.slice(1).split("?")[0];
  const write = section => {
    const text = query();
    history.replaceState(null, "", `#${section}${text ? `?${text}` : ""}`);
  };
  const read = () => {
    const given = new URLSearchParams(location.hash.split("?")[1] ?? "");
    for (const kind of kinds) {
      const value = plain(given.get(kind) ?? "");
      chosen[kind] = known[kind].has(value) ? value : "";
      selects[kind].value = chosen[kind];
    }
    apply();
  };
  const go = section => {
    const target = section && document.getElementById(section);
    if (target) target.scrollIntoView();
    return Boolean(target);
  };

  const reset = make("button", { type: "button" }, "Show all");
  if (kinds.length) {
    const form = make("form", { class: "filter live", role: "search", "aria-label": "Filter" });
    for (const kind of kinds) {
      const options = facets[kind].map(value => make("option", { value: plain(value) }, plain(value)));
      selects[kind] = make("select", { name: kind }, make("option", { value: "" }, "all"), ...options);
      selects[kind].addEventListener("change", () => {
        chosen[kind] = selects[kind].value;
        apply();
        write(anchor());
      });
      form.append(make("label", {}, make("span", {}, titles[kind]), selects[kind]));
    }
    reset.addEventListener("click", () => {
      for (const kind of kinds) chosen[kind] = selects[kind].value = "";
      apply();
      write(anchor());
      selects[kinds[0]].focus();
    });
    form.addEventListener("submit", event => event.preventDefault());
    form.append(reset, status);
    main.prepend(form);
    document.addEventListener("click", event => {  // a link within the page keeps the filter
      const link = event.target.closest?.('a[href^="#"]');
      if (!link || !query()) return;
      if (!go(link.hash.slice(1))) return;
      event.preventDefault();
      write(link.hash.slice(1));
    });
    addEventListener("hashchange", () => { read(); go(anchor()); });
    read();
    if (query()) addEventListener("load", () => go(anchor()));
  }
}
