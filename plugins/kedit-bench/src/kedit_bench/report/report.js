"use strict";
(function () {
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));
  root.classList.add("js");

  // Filters: what carries a model, dataset or scenario that was not chosen is hidden.
  const filters = all("select[data-filter]");
  function filter() {
    for (const part of all("[data-model]")) {
      part.hidden = filters.some((by) => by.value !== "" && part.dataset[by.dataset.filter] !== by.value);
    }
    const groups = all("section.group");
    const nothing = document.querySelector(".nothing");
    if (nothing) nothing.hidden = groups.length === 0 || groups.some((group) => !group.hidden);
  }
  for (const by of filters) by.addEventListener("change", filter);
  if (filters.length) filter(); // a browser may bring back what was chosen before a reload

  // Methods: those that are pressed stand out, the rest is dimmed.
  const methods = all(".methods button");
  for (const button of methods) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      const pressed = methods.filter((each) => each.getAttribute("aria-pressed") === "true");
      const lit = new Set(pressed.map((each) => each.dataset.method));
      for (const part of all(".lit")) part.classList.toggle("dim", lit.size > 0 && !lit.has(part.dataset.method));
    });
  }

  // Tables: a heading sorts its rows, the better end first, then the other way round.
  for (const button of all("button.sort")) {
    button.addEventListener("click", () => {
      const heading = button.closest("th");
      const table = button.closest("table");
      const headings = all("thead tr:last-child th", table);
      const column = headings.indexOf(heading);
      const low = button.dataset.better === "lower" ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === low ? (low === "ascending" ? "descending" : "ascending") : low;
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order);
      const value = (row) => {
        const cell = all("td", row)[column];
        return cell && cell.dataset.v !== undefined ? Number(cell.dataset.v) : NaN;
      };
      const body = table.tBodies[0];
      const rows = Array.from(body.rows).sort((a, b) => {
        const x = value(a), y = value(b);
        if (isNaN(x) || isNaN(y)) return Number(isNaN(x)) - Number(isNaN(y));
        return order === "ascending" ? x - y : y - x;
      });
      body.append(...rows);
    });
  }

  // Explanations: on hover, on focus, and by touch; Escape closes.
  const bubble = document.createElement("div");
  bubble.id = "bubble";
  bubble.setAttribute("role", "tooltip");
  bubble.hidden = true;
  document.body.append(bubble);
  let shown = null;
  function hide() {
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    bubble.hidden = true;
  }
  const explained = new Map(all("[data-explains]").map((part) => [part.dataset.explains, part.textContent]));
  function said(part) {
    const { hint, metric, tag } = part.dataset;
    if (metric === undefined) return hint;
    const text = explained.get(metric);
    return hint + metric + (text ? ": " + text : "") + (tag ? " Tag: " + tag : "");
  }
  function show(part) {
    hide();
    shown = part;
    bubble.textContent = said(part);
    bubble.hidden = false;
    part.setAttribute("aria-describedby", "bubble");
    place();
  }
  function place() {
    if (!shown) return;
    const at = shown.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, root.clientWidth - bubble.offsetWidth - 8));
    const above = at.top - bubble.offsetHeight - 8;
    bubble.style.left = left + "px";
    bubble.style.top = (above > 8 ? above : at.bottom + 8) + "px";
  }
  for (const part of all("[data-hint]")) {
    part.addEventListener("pointerenter", () => show(part));
    part.addEventListener("pointerleave", hide);
    part.addEventListener("focus", () => show(part));
    part.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", place, true); // focus may scroll its part into view

  // Paper shows everything.
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const part of closed) part.open = true;
  });
  window.addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
})();
