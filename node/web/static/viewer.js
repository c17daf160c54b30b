// The slices of a job: one slider for A, the slice at hand and C; windows by a table of greys.
"use strict";

(() => {
  const start = (viewer) => {
    const slider = document.getElementById("slice");
    const places = JSON.parse(viewer.dataset.slices); // [{generated, before, after, text}]
    const levels = JSON.parse(viewer.dataset.levels); // level -> HU
    const address = (number) => `${viewer.dataset.pictures}/${String(number).padStart(5, "0")}.png`;
    const kept = new Map(); // number -> promise of an address in memory: a slider must not wait

    const picture = (number) => {
      if (!kept.has(number)) {
        const found = fetch(address(number)).then(async (answer) => {
          if (!answer.ok) throw new Error(String(answer.status));
          return URL.createObjectURL(await answer.blob());
        });
        found.catch(() => kept.delete(number));
        kept.set(number, found);
      }
      return kept.get(number);
    };

    const show = async (name, number) => {
      const figure = viewer.querySelector(`[data-picture="${name}"]`);
      const place = places[number];
      const tag = figure.querySelector(".tag");
      figure.querySelector("b").textContent = place.title;
      figure.querySelector(".at").textContent = place.at;
      tag.textContent = place.generated ? "generated, not acquired" : "received";
      tag.className = `tag ${place.generated ? "made" : "received"}`;
      const image = figure.querySelector("img");
      image.dataset.wanted = String(number);
      try {
        const source = await picture(number);
        if (image.dataset.wanted === String(number)) {
          image.src = source;
          image.alt = place.text;
        }
      } catch { image.alt = "The picture could not be loaded."; }
    };

    // The expected error of a generated slice as a tint over its picture, or the outline of a mask.
    const tint = document.getElementById("tint");
    const overlay = viewer.querySelector("img.tint");
    const colour = (number) => {
      if (!tint) return;
      overlay.hidden = tint.getAttribute("aria-pressed") !== "true" || !places[number].tint;
      if (!overlay.hidden) overlay.src = address(number).replace(".png", `${places[number].tint}.png`);
    };
    tint?.addEventListener("click", () => {
      tint.setAttribute("aria-pressed", String(tint.getAttribute("aria-pressed") !== "true"));
      colour(Number(slider.value));
    });

    const follow = () => {
      const number = Number(slider.value);
      const place = places[number];
      slider.setAttribute("aria-valuetext", place.text);
      document.getElementById("slice-text").textContent = place.text;
      show("before", place.before);
      show("now", number);
      show("after", place.after);
      colour(number);
      for (const mark of document.querySelectorAll("[data-mark]")) {
        if (mark.dataset.places) {
          const x = JSON.parse(mark.dataset.places)[number];
          mark.setAttribute("x1", x);
          mark.setAttribute("x2", x + Number(mark.dataset.lean));
        } else {
          mark.setAttribute("x", JSON.parse(mark.dataset.cells)[number]);
        }
      }
      for (const near of [number + 1, number - 1, number + 2]) if (places[near]) picture(near);
    };

    const choose = (number) => {
      slider.value = String(number);
      follow();
    };
    slider.addEventListener("input", follow);
    document.getElementById("earlier").addEventListener("click", () => choose(Number(slider.value) - 1));
    document.getElementById("later").addEventListener("click", () => choose(Number(slider.value) + 1));
    for (const strip of document.querySelectorAll("[data-strip]")) {
      strip.addEventListener("click", (event) => {
        const box = strip.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * strip.viewBox.baseVal.width;
        const cells = JSON.parse(strip.querySelector("[data-cells]").dataset.cells);
        choose(Math.max(0, cells.findLastIndex((first) => first <= x)));
      });
    }
    for (const link of document.querySelectorAll("[data-slice]")) {
      link.addEventListener("click", () => {
        choose(Number(link.dataset.slice));
        viewer.scrollIntoView({ block: "nearest" });
      });
    }
    viewer.addEventListener("wheel", (event) => {
      if (!event.target.closest(".three") || event.ctrlKey) return;
      event.preventDefault();
      choose(Number(slider.value) + Math.sign(event.deltaY));
    }, { passive: false });

    const functions = document.querySelectorAll("#window feFuncR, #window feFuncG, #window feFuncB");
    const look = (button) => {
      const [centre, width] = button.dataset.window.split(" ").map(Number);
      const greys = levels.map((hu) => Math.min(1, Math.max(0, (hu - centre) / width + 0.5)).toFixed(4));
      for (const one of functions) one.setAttribute("tableValues", greys.join(" "));
      for (const other of viewer.querySelectorAll("[data-window]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    };
    for (const button of viewer.querySelectorAll("[data-window]")) {
      button.addEventListener("click", () => look(button));
    }
    look(viewer.querySelector("[data-window]"));
    follow();
  };

  // The slices of a job that ends while somebody looks at its page come later than this script.
  const begin = () => {
    const viewer = document.getElementById("viewer");
    if (!viewer || "begun" in viewer.dataset) return;
    viewer.dataset.begun = "";
    start(viewer);
  };
  document.body.addEventListener("htmx:afterSettle", begin);
  begin();
})();
