for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex;
      const first = head.dataset.first || "ascending", other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // rows without a number stay last
        return sign * (head.dataset.kind === "text" ? x.localeCompare(y) : Number(x) - Number(y));
      };
      for (const body of table.tBodies) {  // one body per model: losses are sorted within their model
        body.append(...[...body.rows].filter(row => !row.classList.contains("model")).sort(compare));
      }
    });
  }
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
