(() => {
  "use strict";
  const all = (query, inside = document) => [...inside.querySelectorAll(query)];

  // A click on a head sorts: first the largest numbers, or the alphabet; again, the other way round.
  const key = (cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v));
  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const text = heads[column].classList.contains("t");
    const now = heads[column].getAttribute("aria-sort");
    const up = now === null ? text : now === "descending";
    const rows = [...table.tBodies[0].rows].map((row) => {
      const cell = row.cells[column];
      return [text ? cell.textContent : key(cell), row];
    });
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = text ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    };
    rows.sort((a, b) => compare(a[0], b[0]));
    table.tBodies[0].append(...rows.map((r) => r[1]));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  all("table.sorts").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.addEventListener("click", () => sort(table, column));
    });
  });

  // Layers have one number in all pictures and tables.
  const rows = new Map(all("#t-layers tr[data-i]").map((row) => [Number(row.dataset.i), row]));
  const groups = all("#t-groups tr[data-layers]");
  const bound = (row) => row.dataset.layers.split(" ").filter(Boolean).map(Number);
  let lit = [];
  const light = (layers, from) => {
    lit.forEach((row) => row.classList.remove("on"));
    lit = layers.map((i) => rows.get(i)).filter(Boolean);
    if (from) lit.push(from);
    lit.forEach((row) => row.classList.add("on"));
    all("svg.strip, svg.tracks").forEach((svg) => {
      const height = svg.viewBox.baseVal.height;
      svg.querySelector(".hit").setAttribute("d", layers.map((i) => `M${i} 0h1v${height}h-1z`).join(""));
    });
  };
  const told = (i) => {
    const row = rows.get(i);
    if (!row) return `layer ${i}`;
    const heads = all("#t-layers thead th");
    const cells = [...row.cells].map((cell, c) => [heads[c].textContent.trim(), cell.textContent.trim()]);
    return cells.filter(([, text]) => text && text !== "-").map(([head, text]) => `${head} ${text}`).join(" · ");
  };
  all("svg.strip, svg.tracks").forEach((svg) => {
    const readout = svg.closest("figure").querySelector(".readout");
    const read = (event) => {
      const box = svg.getBoundingClientRect();
      const i = Math.floor(((event.clientX - box.left) / box.width) * Number(svg.dataset.n));
      const g = Math.floor(((event.clientY - box.top) / box.height) * (svg.viewBox.baseVal.height / 10));
      const row = svg.classList.contains("tracks") ? groups[g] : null;
      light(row ? bound(row) : [i], row);
      readout.textContent = told(i);
    };
    svg.addEventListener("pointermove", read);
    svg.addEventListener("click", read);
  });
  groups.forEach((row) => {
    const chosen = () => light(bound(row), row);
    row.addEventListener("click", chosen);
    row.addEventListener("focus", chosen);
  });
})();
