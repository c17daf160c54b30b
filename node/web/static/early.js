// Keeps what somebody pressed before the scripts of the page had run, and does it once they have.
// It alone is no deferred script. A form that the browser sent by itself would write its fields into
// the address, a password too.
"use strict";

(() => {
  const ready = new WeakSet();
  const kept = new Map();
  const triggerOf = (part) => part.getAttribute("hx-trigger")
    || { FORM: "submit", INPUT: "change", SELECT: "change" }[part.tagName] || "click";

  const keep = (event) => {
    const part = event.target.closest("[hx-get], [hx-post], [hx-patch], [hx-delete]");
    if (!part || ready.has(part) || triggerOf(part) !== event.type) return;
    event.preventDefault();
    event.stopPropagation();
    kept.set(part, event);
  };
  for (const kind of ["click", "change", "submit"]) document.addEventListener(kind, keep, true);

  document.addEventListener("htmx:afterProcessNode", ({ target: part }) => {
    ready.add(part);
    const event = kept.get(part);
    kept.delete(part);
    if (event) setTimeout(() => part.dispatchEvent(new event.constructor(event.type, event)));
  });
})();
