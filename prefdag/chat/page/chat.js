"use strict";
// The page of `prefdag chat --web`, a client of /v1/chat/completions. All text is set by textContent: nothing that anybody
// typed or a model said is ever markup.

const MODELS = ["reference", "policy"];
const MOST_MESSAGES = 255, MOST_CHARACTERS = 60000;   // of a request, below what the server takes
const $ = (id) => document.getElementById(id);
let histories, running = null;

function begin() {
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
  follow(() => {}, true);
  return answers;
}

// Make a change, and keep the end of the page in view if it was, or is wanted.
function follow(change, wanted = false) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 40;
  change();
  if (atEnd || wanted) page.scrollTop = page.scrollHeight;
}

// The data of server-sent events, parsed.
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

// Ask one model, and show its answer while it comes. What it said is added to its own history, also a part of an answer.
async function ask(name, histories, question, answer, settings, signal) {
  const text = answer.querySelector(".text"), note = answer.querySelector(".note");
  const messages = [...histories[name], { role: "user", content: question }];
  let dropped = 0;
  while (messages.length > MOST_MESSAGES || (messages.length > 2 && JSON.stringify(messages).length > MOST_CHARACTERS)) {
    dropped += messages.splice(0, 2).length;
  }
  const notes = [];
  let said = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: name, messages, stream: true, ...settings }),
      signal,
    });
    if (!response.ok) {
      const refused = await response.json().catch(() => null);
      throw new Error(refused?.error?.message ?? `the server refused (${response.status}); try again`);
    }
    let finish = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const [choice] = event.choices;
      said += choice.delta.content ?? "";
      follow(() => { text.textContent = said; });
      finish ??= choice.finish_reason;
      if (finish && dropped + event.left_out > 0) {
        notes.push(`The conversation is too long for the model: its oldest ${dropped + event.left_out} messages were left out.`);
      }
    }
    if (finish === null) throw new Error("the server ended in the middle of the answer");
    if (finish === "length") notes.push(`Cut at ${settings.max_tokens} tokens.`);
  } catch (error) {
    if (signal.aborted) notes.push("Stopped.");
    else {
      const gone = error instanceof TypeError;  // fetch knows no other error where nobody answers
      notes.push(gone ? "The server does not answer; is `prefdag chat --web` still running?" : `Error: ${error.message}`);
      note.classList.add("error");
    }
  }
  follow(() => { note.textContent = notes.join(" "); });
  answer.setAttribute("aria-busy", "false");
  // A question without an answer would stand beside the next question, which some templates refuse.
  if (said) histories[name] = [...messages, { role: "assistant", content: said }];
}

async function send() {
  const question = $("message").value.trim();
  if (running || !question) return;
  if (!$("form").checkValidity()) {
    document.querySelector("details").open = true;  // a field that is hidden cannot say what is wrong with it
    $("form").reportValidity();
    return;
  }
  const settings = Object.fromEntries(["max_tokens", "temperature", "seed"].map((key) => [key, $(key).valueAsNumber]));
  const conversation = histories, mine = running = new AbortController();
  $("message").value = "";
  $("send").hidden = true;
  $("stop").hidden = false;
  $("status").textContent = "Answering, one after the other";
  const answers = show(question);
  await Promise.all(MODELS.map((name, i) => ask(name, conversation, question, answers[i], settings, mine.signal)));
  if (running !== mine) return;
  running = null;
  $("stop").hidden = true;
  $("send").hidden = false;
  if (histories === conversation) $("status").textContent = mine.signal.aborted ? "Stopped" : "Both have answered";
  $("message").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("message").addEventListener("keydown", (event) => {
  // While a character is being composed, Enter belongs to the input method.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", begin);
begin();
