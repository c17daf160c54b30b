// What every page does: says what came of a button, counts seconds, unfolds the menu.
"use strict";

(() => {
  const said = document.getElementById("message");
  const say = (text, isBad) => {
    const line = document.createElement("p");
    line.textContent = text;
    if (isBad) line.className = "bad";
    said.replaceChildren(line);
    setTimeout(() => line.remove(), isBad ? 12000 : 5000);
  };

  const answer = (request) => {
    try { return JSON.parse(request.responseText) || {}; } catch { return {}; }
  };
  const problem = (request) => answer(request).detail;
  const sentence = (text) => text ? `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.` : "";
  // Of an action on many: how many were done, and why the first other one was not.
  const batch = (request) => {
    const rows = answer(request);
    if (!Array.isArray(rows) && rows.requeued === undefined) return null;
    const failed = Array.isArray(rows) ? rows.filter((row) => !row.done) : [];
    const done = Array.isArray(rows) ? rows.length - failed.length : rows.requeued;
    const all = Array.isArray(rows) ? rows.length : rows.requeued + rows.held;
    const why = failed.length ? sentence(failed[0].sentence) : "";
    return { isBad: !done, text: `${done ? `${done} of ${all} done.` : "Nothing was changed."} ${why}` };
  };

  // What was answered before stands no more: the next try may fail.
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    const { empties } = event.detail.elt.dataset;
    if (empties) document.querySelector(empties).replaceChildren();
  });

  // Nobody is asked to confirm what would be done to nothing.
  document.body.addEventListener("htmx:confirm", (event) => {
    const button = event.detail.elt.closest("[data-batch]");
    if (!button || button.form.querySelector("tbody [type=checkbox]:checked")) return;
    event.preventDefault();
    say("Nothing was changed. Tick at least one row first.", true);
  });

  document.body.addEventListener("htmx:afterRequest", (event) => {
    const { successful, requestConfig, xhr } = event.detail;
    if (!requestConfig || requestConfig.verb === "get") return;
    if (!successful) {
      say(problem(xhr) || `The node answered ${xhr.status || "nothing"}.`, true);
      return;
    }
    const from = event.detail.elt.closest("[data-message]");
    const outcome = batch(xhr);
    if (from) say(outcome ? outcome.text : from.dataset.message, Boolean(outcome && outcome.isBad));
    const shows = document.querySelector("[data-shows]");
    if (shows && from && from.dataset.gives) {
      shows.hidden = false;
      shows.querySelector("code").textContent = answer(xhr)[from.dataset.gives];
    }
    if (from && from.dataset.then) { location.assign(from.dataset.then); return; }
    if (from && from.tagName === "FORM") from.reset();
    for (const box of document.querySelectorAll("main [type=checkbox]:checked")) box.checked = false;
    htmx.trigger(document.body, "changed");
  });

  // What somebody is ticking or typing stays as it is until they have acted on it.
  const isBusy = (part) => part.querySelector("[type=checkbox]:checked")
    || [...part.querySelectorAll("[type=password]")].some((one) => one.value);
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const { requestConfig, target } = event.detail;
    const isFresh = requestConfig && requestConfig.verb === "get";
    if (isFresh && isBusy(target)) event.detail.shouldSwap = false;
  });

  // The same words as the server's, so that a fresh fragment does not jump.
  const duration = (seconds) => {
    const whole = Math.max(0, Math.round(seconds));
    if (whole < 120) return `${whole} s`;
    if (whole < 7200) return `${Math.floor(whole / 60)} min`;
    if (whole < 172800) return `${Math.floor(whole / 3600)} h`;
    return `${Math.floor(whole / 86400)} days`;
  };
  const skew = Number(document.body.dataset.now) - Date.now() / 1000;
  const tick = () => {
    const now = Date.now() / 1000 + skew;
    for (const one of document.querySelectorAll("[data-since]")) {
      one.textContent = duration(now - Number(one.dataset.since));
    }
    for (const one of document.querySelectorAll("[data-until]")) {
      const left = Number(one.dataset.until) - now;
      one.textContent = left > 0 ? duration(left) : one.dataset.over;
    }
  };
  setInterval(tick, 1000);

  const side = document.getElementById("side");
  const menu = document.getElementById("menu");
  if (menu) {
    menu.addEventListener("click", () => {
      menu.setAttribute("aria-expanded", String(side.classList.toggle("open")));
    });
  }

  // A box that ticks all of its form.
  document.body.addEventListener("change", (event) => {
    if (!event.target.matches("[data-all]")) return;
    for (const box of event.target.form.elements) {
      if (box.type === "checkbox") box.checked = event.target.checked;
    }
  });

  // A file may be dropped anywhere in its frame.
  for (const drop of document.querySelectorAll(".drop")) {
    const input = drop.querySelector("input[type=file]");
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    });
  }
})();
