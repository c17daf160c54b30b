// Tells the parts of a page when their rows have changed, and says when nobody tells any more.
"use strict";

(() => {
  const areas = ["now", "needs", "queue", "deliveries", "peers", "alerts", "capacity",
    "configuration", "selftest", "audit"];
  const againSeconds = 5;
  const lost = document.getElementById("lost");
  const ended = document.getElementById("ended");
  const refresh = (area) => htmx.trigger(document.body, `live-${area}`);
  let source = null;
  let wasLost = false;

  // Whoever passes by reads nothing more; whoever logs in again comes back to this page.
  const end = () => {
    if (!ended.hidden) return;
    if (source) source.close();
    lost.hidden = true;
    const here = location.pathname + location.search;
    document.getElementById("log-in-again").href = `/login?next=${encodeURIComponent(here)}`;
    document.querySelector(".frame").hidden = true;
    ended.hidden = false;
    document.getElementById("log-in-again").focus();
  };

  // The browser tries again by itself, but not where the answer was no stream: was it the log-in?
  const ask = async () => {
    if (!ended.hidden) return;
    try {
      // As the scripts of a page ask: no sign that somebody sits there.
      const answer = await fetch("/api/v1/me", { headers: { "HX-Request": "true" } });
      if (answer.status === 401) { end(); return; }
    } catch { /* the node is away */ }
    setTimeout(listen, againSeconds * 1000);
  };

  const listen = () => {
    source = new EventSource(`/live?since=${document.body.dataset.liveId}`);
    for (const area of areas) source.addEventListener(area, () => refresh(area));
    source.addEventListener("logged-out", end);
    source.addEventListener("open", () => {
      lost.hidden = true;
      if (wasLost) areas.forEach(refresh);
      wasLost = false;
    });
    source.addEventListener("error", () => {
      if (!ended.hidden) return;
      lost.hidden = false;
      wasLost = true;
      if (source.readyState === EventSource.CLOSED) ask();
    });
  };

  document.body.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) end();
  });
  window.addEventListener("pagehide", () => { if (source) source.close(); });
  if (document.querySelector("[data-live]")) listen();
})();
