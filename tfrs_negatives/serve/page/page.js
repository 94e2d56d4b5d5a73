"use strict";

// Names and titles come from data: they are only ever set as text.

const byId = (id) => document.getElementById(id);
const state = { token: "", runs: [], asked: 0, typed: 0 };

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function call(path, body) {
  const headers = { Accept: "application/json" };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) };
  const answer = await fetch(path, options).catch(() => {
    throw new Error("the service does not answer");
  });
  if (answer.status === 401) byId("token-form").hidden = false;
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail || `the service answers ${answer.status}`);
  return content;
}

function report(error) {
  byId("problem").textContent = error ? error.message : "";
  byId("problem").hidden = !error;
}

function address(path, parameters) {
  return `${path}?${new URLSearchParams(parameters)}`;
}

async function suggest() {
  const number = ++state.typed;
  const found = await call(address("/queries", { prefix: byId("query").value }));
  if (number !== state.typed) return;
  byId("key").textContent = `Known query (${found.key})`;
  byId("known").replaceChildren(
    ...found.queries.map((query) => {
      const option = element("option", "");
      option.value = query;
      return option;
    }),
  );
}

function nameOf(item) {
  return item.title === null ? String(item.id) : `${item.title} (${item.id})`;
}

function popularity(item, most) {
  const line = element("div", "popularity");
  if (item.training_events === null) {
    line.textContent = "added since the training";
    return line;
  }
  const bar = element("div", "bar");
  const filled = element("span", "");
  filled.style.width = `${(100 * item.training_events) / Math.max(most, 1)}%`;
  bar.append(filled);
  line.append(bar, element("span", "", `${item.training_events} training events`));
  return line;
}

function row(item, first, side, most) {
  const line = element("li", "");
  const name = element("span", "name", nameOf(item));
  line.append(element("span", "rank", first), name, element("span", "side", side));
  line.append(popularity(item, most));
  return line;
}

function panel(title, note, lines) {
  const section = element("section", "");
  const list = element("ol", "");
  list.append(...lines);
  section.append(element("h2", "", title), element("p", "quiet", note), list);
  return section;
}

function showHistory(history, most) {
  if (history instanceof Error) return panel("History", history.message, []);
  const lines = history.events.map((event, place) => {
    const time = event.time === null ? "" : new Date(1000 * event.time).toISOString().slice(0, 10);
    return row(event, String(place + 1), time, most);
  });
  const note = `${lines.length} of ${history.total} training events of ${history.query_id}`;
  const section = panel("History", note, lines);
  section.id = "history";
  // It scrolls by itself, also with the keyboard.
  const list = section.querySelector("ol");
  list.tabIndex = 0;
  list.setAttribute("aria-label", note);
  return section;
}

function showAnswer(run, answer, shared, most) {
  if (answer instanceof Error) return panel(run.name, answer.message, []);
  const lines = answer.items.map((item) => {
    const line = row(item, String(item.rank), item.score.toFixed(4), most);
    if (shared.has(item.id)) {
      line.className = "both";
      line.querySelector(".name").append(element("span", "tag", "both"));
    }
    return line;
  });
  const made = answer.export.created || answer.export.checksum.slice(0, 12);
  const section = panel(run.name, `${answer.found} items, export of ${made}`, lines);
  section.classList.add("run");
  return section;
}

function sharedItems(answers) {
  const lists = answers.filter((answer) => !(answer instanceof Error));
  if (lists.length < 2) return new Set();
  const [first, second] = lists.map((answer) => new Set(answer.items.map((item) => item.id)));
  return new Set([...first].filter((id) => second.has(id)));
}

async function ask() {
  const number = ++state.asked;
  const query = byId("query").value;
  const k = Number(byId("k").value);
  const exclude_seen = byId("exclude-seen").checked;
  const kept = (error) => error;
  const [history, ...answers] = await Promise.all([
    call(address("/history", { query_id: query })).catch(kept),
    ...state.runs.map((run) =>
      call("/recommend", {
        query_id: query,
        k: Math.min(k, run.num_items),
        exclude_seen,
        run: run.name,
      }).catch(kept),
    ),
  ]);
  if (number !== state.asked) return;
  // What is shown is of the query in the box, or nothing.
  byId("answer").replaceChildren();
  if (answers.every((answer) => answer instanceof Error)) throw answers[0];
  const shown = [history, ...answers].flatMap((answer) => answer.events || answer.items || []);
  const most = Math.max(0, ...shown.map((item) => item.training_events || 0));
  const shared = sharedItems(answers);
  report(null);
  byId("answer").replaceChildren(
    showHistory(history, most),
    ...answers.map((answer, place) => showAnswer(state.runs[place], answer, shared, most)),
  );
}

async function begin() {
  state.runs = (await call("/runs")).runs;
  byId("token-form").hidden = true;
  const names = state.runs.map((run) => `${run.name}: ${run.num_items} items`);
  byId("served").textContent = names.join(" beside ");
  report(null);
  await suggest();
}

function quietly(work) {
  return async (event) => {
    if (event) event.preventDefault();
    try {
      await work();
    } catch (error) {
      report(error);
    }
  };
}

const askAgain = () => (byId("query").value ? ask() : Promise.resolve());
byId("ask").addEventListener("submit", quietly(ask));
byId("query").addEventListener("input", quietly(suggest));
byId("k").addEventListener("change", quietly(askAgain));
byId("exclude-seen").addEventListener("change", quietly(askAgain));
byId("token-form").addEventListener(
  "submit",
  quietly(async () => {
    state.token = byId("token").value;
    await begin();
  }),
);
quietly(begin)();
