// Tells the parts of a page when their rows have changed, and says when nobody tells any more.
"use strict";

(() => {
  const areas = ["now", "needs", "queue", "deliveries", "peers", "capacity", "configuration",
    "selftest", "audit"];
  if (!document.querySelector("[data-live]")) return;
  const lost = document.getElementById("lost");
  const source = new EventSource("/live");
  const refresh = (area) => htmx.trigger(document.body, `live-${area}`);
  let wasLost = false;
  for (const area of areas) source.addEventListener(area, () => refresh(area));
  source.addEventListener("open", () => {
    lost.hidden = true;
    if (wasLost) areas.forEach(refresh);
    wasLost = false;
  });
  source.addEventListener("error", () => { lost.hidden = false; wasLost = true; });
  window.addEventListener("pagehide", () => source.close());
})();
