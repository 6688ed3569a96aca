"use strict";
// The page of `prefdag label`, a client of /v1/comparisons, /v1/labels and /v1/undo. All text is set by textContent, so that
// prompts and answers are never parsed as markup.

const $ = (id) => document.getElementById(id);
const annotator = new URLSearchParams(location.search).get("annotator");
let current = null, busy = false;

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const reply = await response.json().catch(() => null);
  if (!response.ok) throw new Error(reply?.error?.message ?? `the server refused the request (status ${response.status})`);
  return reply;
}

// Run a request and show its reply. Meanwhile keys and buttons do nothing, so that no comparison is labelled unseen.
async function step(request, done) {
  if (busy) return;
  busy = true;
  for (const button of document.querySelectorAll("#form button")) button.disabled = true;
  $("error").textContent = "";
  try {
    const state = await request();
    show(state);
    $("status").textContent = done;
  } catch (error) {
    const unreachable = error instanceof TypeError;  // what fetch throws if there is no answer
    $("error").textContent = unreachable
      ? "Not saved: the server does not respond. Is `prefdag label` still running?" : `Error: ${error.message}`;
  }
  busy = false;
  for (const button of document.querySelectorAll("#form button")) {
    button.disabled = !current && button.dataset.outcome !== "undo";
  }
}

function show(state) {
  current = state.comparison;
  $("progress").textContent = `${annotator}: ${state.done} of ${state.total}; labelled by anybody: ${state.labelled}`;
  $("form").hidden = false;
  $("comparison").hidden = !current;
  $("end").hidden = Boolean(current);
  $("note").disabled = !current;
  $("note").value = current?.note ?? "";
  if (!current) return;
  $("heading").textContent = `Prompt ${state.done + 1} of ${state.total}`;
  $("turns").replaceChildren(...current.turns.map((turn) => {
    const copy = $("turn").content.firstElementChild.cloneNode(true);
    copy.querySelector("h3").textContent = turn.role;
    copy.querySelector("p").textContent = turn.text;
    return copy;
  }));
  for (const side of ["left", "right"]) $(side).textContent = current[side];
  scrollTo(0, 0);
  $("heading").focus({ preventScroll: true });  // a screen reader reads on from here
}

function choose(outcome) {
  if (outcome === "undo") return step(() => ask("v1/undo", { annotator }), "Undone: label it again");
  if (!current) return;
  const label = { annotator, id: current.id, outcome, note: $("note").value };
  return step(() => ask("v1/labels", label), "Saved");
}

for (const button of document.querySelectorAll("[data-outcome]")) {
  button.addEventListener("click", () => choose(button.dataset.outcome));
}
document.addEventListener("keydown", (event) => {
  if (!annotator || event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("note")) {
    if (event.key === "Enter" || event.key === "Escape") $("heading").focus({ preventScroll: true });
    return;
  }
  if (!$("shortcuts").checked) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "n" && current) $("note").focus();
  const button = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (key !== "n" && !button) return;
  event.preventDefault();
  if (button) choose(button.dataset.outcome);
});
$("form").addEventListener("submit", (event) => event.preventDefault());
$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  location.search = new URLSearchParams({ annotator: $("name").value });
});
$("name").addEventListener("input", () => { $("name").value = $("name").value.toLowerCase(); });

if (annotator) step(() => ask(`v1/comparisons?${new URLSearchParams({ annotator })}`), "");
else {
  $("who").hidden = false;
  $("name").focus();
}
