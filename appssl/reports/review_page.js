"use strict";
// The review page: cards sorted by suspicion, decisions by keyboard. Works from a server, which keeps every decision at
// once, and from a file, where decisions are downloaded. Text from data only ever becomes textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const served = location.protocol.startsWith("http");
  const items = new Map(data.items.map((item) => [item.id, item]));
  const decisions = new Map(); // id -> [decision, label or null]
  const unsaved = new Map(); // id -> what is to be sent (null: taken back), or in a file not yet downloaded
  const history = []; // [id, what was decided before]
  const reasons = { irrelevant: "irrelevant", duplicate: "duplicate" };
  const at = (id) => document.getElementById(id);
  let view = "labels";
  let cards = []; // of the images shown, in order
  let current = null; // id

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Which images are shown

  function idsOfView() {
    return view === "labels" ? data.labels : data.groups.flatMap((group) => group.ids);
  }

  function isShown(id) {
    const item = items.get(id);
    const [kind, label, state] = ["kind", "label", "state"].map((name) => at(name).value);
    if (kind && item.kind !== kind) return false;
    if (label && item.label !== label) return false;
    return !state || decisions.has(id) === (state === "decided");
  }

  function draw() {
    const grid = at("grid");
    grid.replaceChildren();
    cards = [];
    if (view === "labels") grid.append(row(data.labels.filter(isShown)));
    else for (const group of data.groups) drawGroup(grid, group);
    at("empty").hidden = cards.length > 0;
    const kept = cards.find((card) => card.dataset.id === current);
    select(kept ?? cards.find((card) => !decisions.has(card.dataset.id)) ?? cards[0]);
    showProgress();
  }

  function drawGroup(grid, group) {
    const ids = group.ids.filter(isShown);
    if (!ids.length) return;
    const section = element("section", group.leak ? "group leak" : "group");
    const head = element("h2", "", `Group ${group.number} · similarity ${group.similarity.toFixed(3)}`);
    if (group.leak) head.append(element("span", "bad", `leak: ${group.splits.join(" and ")}`));
    section.append(head, row(ids));
    grid.append(section);
  }

  function row(ids) {
    const made = element("div", "cards");
    for (const id of ids) made.append(makeCard(items.get(id)));
    return made;
  }

  function makeCard(item) {
    const card = element("button", "card");
    card.type = "button";
    card.tabIndex = -1;
    card.dataset.id = item.id;
    const image = element("img");
    image.src = `data:image/jpeg;base64,${item.image}`;
    image.alt = "";
    const names = element("span", "names");
    names.append(element("b", "", item.label ?? "no label"));
    if (proposal(item)) names.append(element("span", proposal(item).className, `→ ${proposal(item).text}`));
    const line = element("span", "meter");
    line.append(element("i"));
    line.firstChild.style.width = `${Math.round(100 * (item.suspicion ?? 0))}%`;
    card.append(image, names);
    if (view === "labels") card.append(line);
    const badges = element("span", "badges");
    if (view === "groups" || item.split !== "train") badges.append(element("span", "badge", item.split));
    if (item.leak) badges.append(element("span", "badge bad", "leak"));
    card.append(badges, element("span", "mark"));
    mark(card);
    cards.push(card);
    return card;
  }

  // What the labeler would do other than keep the label.
  function proposal(item) {
    if (item.kind === "ood_noise") return { decision: "irrelevant", label: null, text: "irrelevant", className: "out" };
    if (!item.suggested || item.suggested === item.label) return null;
    return { decision: "relabel", label: item.suggested, text: item.suggested, className: "to" };
  }

  function mark(card) {
    const decision = decisions.get(card.dataset.id);
    card.classList.toggle("decided", decision !== undefined);
    const item = items.get(card.dataset.id);
    const said = decision ? words(decision) : "";
    card.querySelector(".mark").textContent = said;
    const about = [item.label ?? "no label", proposal(item) && `suggested ${proposal(item).text}`, said && `decided: ${said}`];
    card.setAttribute("aria-label", about.filter(Boolean).join(", "));
  }

  function words([decision, label]) {
    return reasons[decision] ?? (decision === "keep" ? "keep" : `→ ${label}`);
  }

  // The selected image

  function select(card) {
    for (const other of cards) if (other.dataset.id === current) other.removeAttribute("aria-current");
    current = card ? card.dataset.id : null;
    if (card) {
      card.setAttribute("aria-current", "true");
      card.scrollIntoView({ block: "nearest" });
    }
    showPanel();
  }

  function showPanel() {
    const item = items.get(current);
    at("panel").hidden = !item;
    if (!item) return;
    at("large").src = `data:image/jpeg;base64,${item.image}`;
    at("name").textContent = item.id;
    const facts = at("facts");
    facts.replaceChildren();
    const rows = [
      ["kind", item.kindText],
      ["suspicion", item.suspicion?.toFixed(3)],
      ["reason", item.why],
      ["", item.facts],
      ["part", item.split],
      ["nearest", item.nearest && `${item.nearest} (${item.nearestSplit}), similarity ${item.similarity.toFixed(3)}`],
    ];
    for (const [name, value] of rows) {
      if (value) facts.append(element("dt", "", name), element("dd", "", value));
    }
    if (item.leak) facts.append(element("dt", "bad", "leak"), element("dd", "bad", "much the same, by the encoder, is in another part"));
    if (item.url) {
      const link = element("a", "", "open where it was found");
      link.href = item.url;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      const place = element("dd");
      place.append(link);
      facts.append(element("dt", "", "source"), place);
    }
    showButtons(item);
  }

  function showButtons(item) {
    const decision = decisions.get(item.id);
    button("keep", item.label ? `Keep ${item.label}` : "Keep label", Boolean(item.label), decision?.[0] === "keep");
    const to = proposal(item);
    const isSuggested = Boolean(to) && decision?.[0] === to.decision && decision[1] === to.label;
    button("suggestion", to ? `Take suggestion: ${to.text}` : "Take suggestion", Boolean(to), isSuggested);
    const isOther = decision?.[0] === "relabel" && !isSuggested;
    button("other", isOther ? `Other class: ${decision[1]}` : "Other class …", true, isOther);
    button("irrelevant", "Irrelevant", true, decision?.[0] === "irrelevant");
    button("duplicate", "Duplicate", true, decision?.[0] === "duplicate");
    button("undo", "Undo", history.length > 0, false);
  }

  function button(id, text, enabled, pressed) {
    const found = at(id);
    found.querySelector("span").textContent = text;
    found.disabled = !enabled;
    found.setAttribute("aria-pressed", String(pressed));
  }

  function showProgress() {
    const ids = idsOfView();
    const done = ids.filter((id) => decisions.has(id)).length;
    at("track").firstElementChild.style.width = `${ids.length ? (100 * done) / ids.length : 0}%`;
    at("count").textContent = `${done.toLocaleString("en")} of ${ids.length.toLocaleString("en")} decided`;
    const pending = unsaved.size ? `${unsaved.size.toLocaleString("en")} ${served ? "being saved" : "not downloaded"}` : "";
    at("saved").textContent = pending || (served ? "all saved" : "");
    at("download").hidden = served && !at("problem").textContent;
  }

  // Deciding

  function decide(decision, label = null) {
    const item = items.get(current);
    if (!item) return;
    history.push([current, decisions.get(current) ?? null]);
    put(current, [decision, label]);
    advance();
  }

  function put(id, value) {
    if (value) decisions.set(id, value);
    else decisions.delete(id);
    unsaved.set(id, value);
    for (const card of cards) if (card.dataset.id === id) mark(card);
    showProgress();
    send();
  }

  function advance() {
    const place = cards.findIndex((card) => card.dataset.id === current);
    const open = (card) => !decisions.has(card.dataset.id);
    const next = cards.slice(place + 1).find(open) ?? cards.find(open);
    select(next ?? cards[place]);
  }

  function undo() {
    const last = history.pop();
    if (!last) return;
    put(last[0], last[1]);
    const card = cards.find((one) => one.dataset.id === last[0]);
    if (card) select(card);
    else showPanel();
  }

  function keep() {
    const item = items.get(current);
    if (item?.label) decide("keep", item.label);
  }

  function takeSuggestion() {
    const to = current && proposal(items.get(current));
    if (to) decide(to.decision, to.label);
  }

  function choose(label) {
    if (items.get(current)?.label === label) keep();
    else decide("relabel", label);
  }

  // Keeping decisions: one request at a time, in the order in which they were made

  let sending = false;
  async function send() {
    if (!served || sending) return;
    sending = true;
    try {
      while (unsaved.size) {
        const [id, value] = unsaved.entries().next().value;
        const body = JSON.stringify({ id, decision: value ? value[0] : null, label: value ? value[1] : null });
        const answer = await fetch("decisions", { method: "POST", headers: { "Content-Type": "application/json" }, body });
        if (!answer.ok) throw new Error((await answer.json()).problem);
        if (unsaved.get(id) === value) unsaved.delete(id);
      }
      problem("");
    } catch (error) {
      const why = error instanceof TypeError ? "the server does not answer. Is 'appssl review' still running?" : error.message;
      problem(`Not saved: ${why}`);
    } finally {
      sending = false;
      showProgress();
    }
  }

  function problem(text) {
    at("problem").textContent = text;
    at("alert").hidden = !text;
  }

  async function load() {
    let rows = data.decisions;
    if (served) {
      try {
        rows = (await (await fetch("decisions")).json()).decisions;
      } catch {
        problem("Decisions could not be read from the server. Reload the page.");
      }
    }
    for (const [id, decision, label] of rows) decisions.set(id, [decision, label]);
    draw();
  }

  function csv() {
    const cell = (value) => (/[",\n\r]/.test(value ?? "") ? `"${value.replaceAll('"', '""')}"` : (value ?? ""));
    const rows = [...decisions].map(([id, [decision, label]]) => [id, decision, decision in reasons ? null : label]);
    rows.sort(([a], [b]) => (a < b ? -1 : 1));
    return [["id", "decision", "label"], ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
  }

  function download() {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "decisions.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    if (!served) unsaved.clear();
    showProgress();
  }

  // Another class

  function openPicker() {
    if (!current) return;
    at("search").value = "";
    listClasses();
    at("picker").showModal();
    at("search").focus();
  }

  function listClasses() {
    const wanted = at("search").value.trim().toLowerCase();
    const starts = data.classes.filter((name) => name.toLowerCase().startsWith(wanted));
    const holds = data.classes.filter((name) => !starts.includes(name) && name.toLowerCase().includes(wanted));
    const found = [...starts, ...holds].map((name) => {
      const option = element("button", "", name);
      option.type = "button";
      option.addEventListener("click", () => pick(name));
      return option;
    });
    at("options").replaceChildren(...found);
    found[0]?.setAttribute("aria-current", "true");
  }

  function closePicker() {
    at("picker").close();
    at("search").blur(); // what is hidden keeps the focus until the next frame, and would swallow a quick key
  }

  function pick(name) {
    closePicker();
    choose(name);
  }

  function pickerKey(event) {
    const options = [...at("options").children];
    const place = options.findIndex((option) => option.hasAttribute("aria-current"));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && place >= 0) {
      event.preventDefault();
      pick(options[place].textContent);
    } else if (event.key === "Escape") {
      event.preventDefault();
      closePicker();
    } else if (step && options.length) {
      event.preventDefault();
      options[place]?.removeAttribute("aria-current");
      const next = options[(place + step + options.length) % options.length];
      next.setAttribute("aria-current", "true");
      next.scrollIntoView({ block: "nearest" });
    }
  }

  // Keys

  function neighbour(key) {
    const place = cards.findIndex((card) => card.dataset.id === current);
    if (place < 0) return cards[0];
    if (key === "ArrowRight") return cards[place + 1];
    if (key === "ArrowLeft") return cards[place - 1];
    const here = cards[place].getBoundingClientRect();
    const others = key === "ArrowDown" ? cards.slice(place + 1) : cards.slice(0, place).reverse();
    const first = others.find((card) => Math.abs(card.getBoundingClientRect().top - here.top) > 4);
    if (!first) return undefined;
    const line = others.filter((card) => Math.abs(card.getBoundingClientRect().top - first.getBoundingClientRect().top) < 4);
    const away = (card) => Math.abs(card.getBoundingClientRect().left - here.left);
    return line.reduce((best, card) => (away(card) < away(best) ? card : best));
  }

  const actions = {
    k: keep,
    s: takeSuggestion,
    c: openPicker,
    i: () => decide("irrelevant"),
    d: () => decide("duplicate"),
    u: undo,
  };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || at("picker").open) return;
    if (["SELECT", "INPUT"].includes(event.target.tagName)) return;
    const name = event.key.toLowerCase();
    if (actions[name]) {
      event.preventDefault();
      actions[name]();
    } else if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      const card = neighbour(event.key);
      if (card) select(card);
    } else if (/^[1-9]$/.test(name) && data.classes.length <= 9 && data.classes[name - 1] !== undefined && current) {
      choose(data.classes[name - 1]);
    }
  }

  // Start

  function fill(id, all, values) {
    at(id).append(new Option(all, ""));
    for (const [value, text] of values) at(id).append(new Option(text, value));
    at(id).addEventListener("change", () => {
      at(id).blur(); // so that the next key decides
      draw();
    });
  }

  function show(name) {
    view = name;
    current = null;
    for (const other of ["labels", "groups"]) at(`view-${other}`).setAttribute("aria-pressed", String(other === name));
    for (const other of ["labels", "groups"]) at(`intro-${other}`).hidden = other !== name;
    draw();
  }

  function start() {
    fill("kind", "all kinds", data.kinds);
    fill("label", "all labels", data.classes.map((name) => [name, name]));
    fill("state", "decided or not", [["open", "not decided"], ["decided", "decided"]]);
    if (data.classes.length <= 9) {
      data.classes.forEach((name, i) => {
        const made = element("button", "class");
        made.type = "button";
        made.append(element("span", "", name), element("kbd", "", String(i + 1)));
        made.addEventListener("click", () => choose(name));
        at("classes").append(made);
      });
    }
    at("views").hidden = data.groups.length === 0;
    for (const name of ["labels", "groups"]) at(`view-${name}`).addEventListener("click", () => show(name));
    const clicks = { keep, suggestion: takeSuggestion, other: openPicker, undo, download, retry: send };
    for (const name of Object.keys(reasons)) clicks[name] = () => decide(name);
    for (const [id, action] of Object.entries(clicks)) at(id).addEventListener("click", () => action());
    at("grid").addEventListener("click", (event) => {
      const card = event.target.closest(".card");
      if (card) select(card);
    });
    at("search").addEventListener("input", listClasses);
    at("picker").addEventListener("keydown", pickerKey);
    document.addEventListener("keydown", key);
    window.addEventListener("beforeunload", (event) => {
      if (unsaved.size) event.preventDefault();
    });
    at("intro-groups").hidden = true;
    load();
  }

  start();
})();
