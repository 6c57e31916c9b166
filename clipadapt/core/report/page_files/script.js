"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // ---- sorting: a button in every heading; rows without a value stay last in both directions
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
          const raw = row.cells[column].dataset.sort;
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
      });
    });
  }

  // ---- filters: an item is shown if every attribute it has matches; one without the attribute is a baseline
  const form = document.getElementById("filters");
  const selects = all("select", form);
  const items = all(".item");
  const rows = all("#leaderboard tbody tr");
  const values = (item, name) => [item.dataset[name], item.dataset[name + "2"]].filter((v) => v !== undefined);
  const apply = () => {
    const wanted = selects.filter((s) => s.value).map((s) => [s.dataset.filter, s.value]);
    for (const item of items) {
      const fits = wanted.every(([name, value]) => {
        const own = values(item, name);
        return own.length === 0 || own.includes(value);
      });
      item.classList.toggle("off", !fits);
    }
    for (const panel of all(".panel")) {
      panel.classList.toggle("off", !panel.querySelector("svg.chart .item:not(.off)") || other(panel));
    }
    shorten(wanted.length > 0);
    const shown = rows.filter((r) => !r.classList.contains("off")).length;
    document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
    document.querySelector("#leaderboard .none").hidden = shown > 0;
  };

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
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();

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
