"use strict";
// The page of `prefdag chat --web`, a client of /v1/chat/completions. All text is set by textContent, so that messages and
// answers are never parsed as markup.

const MODELS = ["reference", "policy"];
const MAX_MESSAGES = 255, MAX_CHARACTERS = 60000;   // per request, below the server's limits
const $ = (id) => document.getElementById(id);
let histories, running = null;

function reset() {
  running?.abort();
  histories = Object.fromEntries(MODELS.map((name) => [name, []]));
  $("log").replaceChildren();
  $("hint").hidden = false;
  $("status").textContent = "";
  $("message").focus();
}

function copy(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function show(question) {
  const exchange = copy("exchange");
  exchange.querySelector(".user p").textContent = question;
  const answers = MODELS.map((name) => {
    const answer = copy("answer");
    answer.classList.add(name);
    answer.querySelector("h2").textContent = name;
    exchange.querySelector(".answers").append(answer);
    return answer;
  });
  $("hint").hidden = true;
  $("log").append(exchange);
  document.querySelector("details").open = false;
  scrollAfter(() => {}, true);
  return answers;
}

// Make a change, then scroll to the end of the page if it was in view before, or if `force` is set.
function scrollAfter(change, force = false) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 40;
  change();
  if (atEnd || force) page.scrollTop = page.scrollHeight;
}

// The parsed data of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") continue;
      yield JSON.parse(part.slice("data: ".length));
    }
  }
}

// Ask one model, and show its answer as it arrives. The answer is added to the model's history, even if it is incomplete.
async function ask(name, histories, question, answer, settings, signal) {
  const text = answer.querySelector(".text"), note = answer.querySelector(".note");
  const messages = [...histories[name], { role: "user", content: question }];
  let dropped = 0;
  while (messages.length > MAX_MESSAGES || (messages.length > 2 && JSON.stringify(messages).length > MAX_CHARACTERS)) {
    dropped += messages.splice(0, 2).length;
  }
  const notes = [];
  let content = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: name, messages, stream: true, ...settings }),
      signal,
    });
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new Error(body?.error?.message ?? `the server refused the request (status ${response.status}); try again`);
    }
    let finish = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      content += choice.delta.content ?? "";
      scrollAfter(() => { text.textContent = content; });
      finish ??= choice.finish_reason;
      if (finish && dropped + event.left_out > 0) {
        notes.push(`The conversation is too long for the model. Its oldest ${dropped + event.left_out} messages were left out.`);
      }
    }
    if (finish === null) throw new Error("the server stopped in the middle of the answer");
    if (finish === "length") notes.push(`Truncated at ${settings.max_tokens} tokens.`);
  } catch (error) {
    if (signal.aborted) notes.push("Stopped.");
    else {
      const unreachable = error instanceof TypeError;  // what fetch throws if there is no answer
      notes.push(unreachable ? "The server does not respond. Is `prefdag chat --web` still running?" : `Error: ${error.message}`);
      note.classList.add("error");
    }
  }
  scrollAfter(() => { note.textContent = notes.join(" "); });
  answer.setAttribute("aria-busy", "false");
  // A question without an answer is left out: some templates reject two user messages in a row.
  if (content) histories[name] = [...messages, { role: "assistant", content }];
}

async function send() {
  const question = $("message").value.trim();
  if (running || !question) return;
  if (!$("form").checkValidity()) {
    document.querySelector("details").open = true;  // a hidden field cannot show its validation message
    $("form").reportValidity();
    return;
  }
  const settings = Object.fromEntries(["max_tokens", "temperature", "seed"].map((key) => [key, $(key).valueAsNumber]));
  const conversation = histories, controller = running = new AbortController();
  $("message").value = "";
  $("send").hidden = true;
  $("stop").hidden = false;
  $("status").textContent = "Answering, one model after the other";
  const answers = show(question);
  await Promise.all(MODELS.map((name, i) => ask(name, conversation, question, answers[i], settings, controller.signal)));
  if (running !== controller) return;
  running = null;
  $("stop").hidden = true;
  $("send").hidden = false;
  if (histories === conversation) $("status").textContent = controller.signal.aborted ? "Stopped" : "Both models have answered";
  $("message").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  // While a character is being composed, Enter is for the input method.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", reset);
reset();
