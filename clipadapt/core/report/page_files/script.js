"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // ---- on a narrow screen a table is a list: every cell carries the heading of its column
  for (const grid of all(".scroll > table")) {
    const titles = all("thead th", grid).map((h) => h.textContent.trim());
    if (!titles.length || grid.querySelector("[colspan]")) continue;
    for (const row of grid.tBodies[0].rows) {
      Array.from(row.cells).forEach((c, i) => { if (c.tagName === "TD") c.dataset.title = titles[i] || ""; });
    }
    grid.classList.add("stacked");
  }

  // ---- sorting: a button in every heading; rows without a value stay last in both directions
  const sorted = {};
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const figures = head.classList.contains("figure");
        const before = head.getAttribute("aria-sort");
        // The first choice shows figures from the largest, names from A.
        const up = before === "none" ? !figures : before === "descending";
        heads.forEach((h) => h.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          const raw = "plain" in table.dataset ? cell.textContent : cell.dataset.sort;
          if (raw === undefined) return null;
          return figures ? Number(raw) : raw;
        };
        const order = (a, b) => {
          const x = value(a), y = value(b);
          if (x === null || y === null) return (x === null) - (y === null);
          const by = figures ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
          return up ? by : -by;
        };
        body.append(...Array.from(body.rows).sort(order));
        if (table.closest("#leaderboard")) {
          Object.assign(sorted, { by: head.textContent.trim(), up });
          remember();
        }
      });
    });
  }

  // ---- filters: an item is shown if every attribute it has matches; one without the attribute is a baseline
  const form = document.getElementById("filters");
  const selects = all("select", form);
  const items = all(".item");
  const rows = all("#leaderboard tbody tr");
  const values = (item, name) => [item.dataset[name], item.dataset[name + "2"]].filter((v) => v !== undefined);
  const search = document.getElementById("search");
  const wordsOf = (row) => [row.textContent, ...Object.values(row.dataset)].join(" ").toLowerCase();
  const text = new Map(rows.map((r) => [r, wordsOf(r)]));
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((s) => s.value).map((s) => [s.dataset.filter, s.value]);
    for (const item of items) {
      const fits = wanted.every(([name, value]) => {
        const own = values(item, name);
        return own.length === 0 || own.includes(value);
      });
      const found = !text.has(item) || words.every((w) => text.get(item).includes(w));
      item.classList.toggle("off", !fits || !found);
    }
    for (const panel of all(".panel")) {
      panel.classList.toggle("off", !panel.querySelector("svg.chart .item:not(.off)") || other(panel));
    }
    shorten(wanted.length > 0);
    const shown = rows.filter((r) => !r.classList.contains("off")).length;
    document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
    document.querySelector("#leaderboard .none").hidden = shown > 0;
    remember();
  };

  // ---- the address holds filters, search and order, so that a link shows the same rows
  let restoring = true;
  const remember = () => {
    if (restoring) return;
    const state = new URLSearchParams();
    for (const s of selects) if (s.value) state.set(s.dataset.filter, s.value);
    if (search.value.trim()) state.set("search", search.value.trim());
    if (sorted.by) state.set("sort", (sorted.up ? "" : "-") + sorted.by);
    const query = state.toString();
    history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
  };
  const restore = () => {
    const state = new URLSearchParams(location.search);
    for (const s of selects) {
      const value = state.get(s.dataset.filter);
      if (value !== null && Array.from(s.options).some((o) => o.value === value)) s.value = value;
    }
    search.value = state.get("search") || "";
    const sort = state.get("sort") || "";
    const head = all("#leaderboard thead th").find((h) => h.textContent.trim() === sort.replace(/^-/, ""));
    if (head) {
      const order = sort.startsWith("-") ? "descending" : "ascending";
      while (head.getAttribute("aria-sort") !== order) head.querySelector("button").click();
    }
  };

  // ---- the rows shown as CSV; an interval has two columns of its own
  const csv = document.getElementById("csv");
  const cell = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const table = () => {
    const shown = Array.from(document.querySelectorAll("#leaderboard tbody tr")).filter((r) => !r.classList.contains("off"));
    const lines = [[], ...shown.map(() => [])];
    all("#leaderboard thead th").forEach((head, column) => {
      const figures = head.classList.contains("figure");
      const name = head.textContent.trim();
      const values = shown.map((r) => r.cells[column].textContent.replace(/\s+/g, " ").trim());
      const parts = values.map((v) => /^(\S+) \[(\S+), (\S+)\]$/.exec(v));
      if (figures && parts.some(Boolean)) {
        lines[0].push(name, `${name} low`, `${name} high`);
        values.forEach((v, i) => lines[i + 1].push(...(parts[i] ? parts[i].slice(1) : [v, "", ""])));
        return;
      }
      lines[0].push(name);
      values.forEach((v, i) => {
        const plain = figures ? v.replaceAll(",", "") : v.replace(/^[=+@-](?=.)/, "'$&");
        lines[i + 1].push(plain);
      });
    });
    return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
  };
  csv.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    link.download = "leaderboard.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  csv.hidden = false;

  // ---- a long list shows only its first cards until "Show all" or a filter
  const FEW = 12;
  const long = all(".list").filter((list) => list.children.length > FEW + 3);
  for (const list of long) {
    const more = document.createElement("button");
    more.type = "button";
    more.className = "more";
    more.textContent = `Show all ${list.children.length}`;
    more.addEventListener("click", () => { list.dataset.whole = "yes"; apply(); });
    list.after(more);
  }
  const shorten = (filtered) => {
    for (const list of long) {
      const cut = !filtered && !list.dataset.whole;
      Array.from(list.children).forEach((card, i) => card.classList.toggle("later", cut && i >= FEW));
      list.nextElementSibling.hidden = !cut;
    }
  };

  // ---- one kind of cost is shown at a time
  const choice = document.querySelector(".choice");
  const other = (panel) => Boolean(choice && panel.dataset.kind && panel.dataset.kind !== choice.elements.cost.value);
  if (choice) choice.addEventListener("change", apply);
  form.addEventListener("change", apply);
  search.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  restore();
  apply();
  restoring = false;

  // ---- tooltips of marks, by pointer or touch
  const tip = document.getElementById("tip");
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest && event.target.closest(".pt");
    if (!mark) { tip.hidden = true; return; }
    const title = mark.querySelector("title");
    if (title) { mark.dataset.title = title.textContent; title.remove(); }
    if (!mark.dataset.title) { tip.hidden = true; return; }
    tip.textContent = mark.dataset.title;
    tip.hidden = false;
    const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 4);
    const above = box.top - own.height - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  });
})();
