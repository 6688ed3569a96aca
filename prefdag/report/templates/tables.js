"use strict";
// Sorts, filters and pages tables. Without this script the page is complete, with the rows in their original order.

const order = new Intl.Collator("en", { numeric: true });

// `unit` is a row, or a table body, which counts by its first row.
const cellOf = (unit, column) => (unit.rows ? unit.rows[0] : unit).cells[column];

// The sort key of a cell: text for a heading, otherwise the number that the cell starts with, or NaN.
function keyOf(cell) {
  const text = cell.textContent.trim();
  return cell.tagName === "TH" ? text : Number.parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
}

function compare(a, b) {
  if (typeof a === "string") return order.compare(a, b);
  return a - b;
}

function sort(table, column, direction) {
  const units = table.tBodies.length > 1 ? [...table.tBodies] : [...table.tBodies[0].rows];
  const parent = units[0].parentNode;
  const keyed = units.map((unit) => [keyOf(cellOf(unit, column)), unit]);
  keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || direction * compare(a, b) || 0);
  parent.append(...keyed.map(([, unit]) => unit));
}

// Shows the units of a table that no filter hides a page at a time. Paper gets all of them: see `.elsewhere` in style.css.
const pagers = new Map();

function page(table) {
  const bar = document.querySelector(`[data-pager="${table.id}"]`);
  const size = Number(bar.dataset.size);
  const [previous, next] = bar.querySelectorAll("button");
  const position = bar.querySelector("output");
  let first = 0;
  const show = () => {
    const units = [...table.tBodies].filter((unit) => !unit.hidden);
    for (const [i, unit] of units.entries()) unit.classList.toggle("elsewhere", i < first || i >= first + size);
    bar.hidden = units.length <= size;
    previous.disabled = first === 0;
    next.disabled = first + size >= units.length;
    position.textContent = `${first + 1}\u2013${Math.min(first + size, units.length)} of ${units.length}`;
  };
  const turn = (pages) => {
    first += pages * size;
    show();
    table.scrollIntoView();
  };
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  pagers.set(table, () => {
    first = 0;
    show();
  });
  show();
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort(table, column, ascending ? 1 : -1);
      pagers.get(table)?.();
    });
  }
  if (table.hasAttribute("data-paged")) page(table);
}

for (const bar of document.querySelectorAll("[data-filters]")) {
  const table = document.getElementById(bar.dataset.filters);
  const bodies = [...table.tBodies];
  const kind = bar.querySelector("select");
  const words = bar.querySelector("input");
  const counter = bar.querySelector("output");
  const fold = (text) => text.normalize("NFC").toLowerCase();
  const texts = new Map();
  const textOf = (body) => {
    if (!texts.has(body)) texts.set(body, fold(body.textContent));
    return texts.get(body);
  };
  const filter = () => {
    const sought = fold(words.value.trim());
    for (const body of bodies) {
      const isKind = !kind.value || body.dataset.kind === kind.value;
      body.hidden = !(isKind && (!sought || textOf(body).includes(sought)));
    }
    counter.textContent = `${bodies.filter((body) => !body.hidden).length} of ${bodies.length}`;
    pagers.get(table)?.();
  };
  kind.addEventListener("change", filter);
  words.addEventListener("input", filter);
  bar.hidden = false;
  filter();
}
