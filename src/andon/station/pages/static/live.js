// The last part: fetched anew when the station tells that something was inspected, or that its state has changed.
(() => {
  "use strict";
  const AGAIN_MS = 2000, PATIENCE_MS = 5000;
  const HELD_MS = 2000; // a press is waited for no longer
  const place = document.getElementById("live"), banner = document.querySelector("[data-lost-banner]");
  let opacity = sessionStorage.getItem("andon-opacity") ?? "60", fetching = false, again = false, later = 0;
  const CONTROLS = "a, button, [data-opacity]";
  let press = Promise.resolve(), release = () => {};

  function dress() {
    const slider = place.querySelector("[data-opacity]"), layer = place.querySelector(".layer");
    if (!slider) return;
    slider.value = opacity;
    if (layer) layer.style.opacity = opacity / 100;
  }

  // A control by what it does, so that the focus finds it again.
  const named = (control) => `${control.tagName} ${control.href ?? control.textContent}`;

  function draw(text) {
    const focused = place.contains(document.activeElement) ? named(document.activeElement) : "";
    place.innerHTML = text;
    dress();
    const controls = [...place.querySelectorAll(CONTROLS)];
    if (focused) controls.find((each) => named(each) === focused)?.focus({ preventScroll: true });
  }

  async function refresh() {
    if (fetching) { again = true; return; }
    fetching = true;
    let current = false;
    try {
      const headers = { "X-Fetched-By-Page": "live" };
      const answer = await fetch(place.dataset.live, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.redirected) { location.reload(); return; } // signed out
      if (answer.ok) {
        const text = await answer.text();
        await press; // what is pressed stays where it is until it is let go
        draw(text);
        current = true;
      }
    } catch { /* the banner says that the connection is lost */ }
    place.classList.toggle("stale", !current);
    fetching = false;
    clearTimeout(later);
    if (again) { again = false; refresh(); } else if (!current) later = setTimeout(refresh, AGAIN_MS);
  }

  let events = null;

  function listen() {
    events = new EventSource(place.dataset.events);
    events.onopen = () => { banner.hidden = true; };
    for (const kind of ["record", "state", "alarm", "lost"]) events.addEventListener(kind, refresh); // the first is a state
    events.onerror = () => {
      banner.hidden = false;
      events.close();
      refresh(); // the session may have ended, with the station or by itself: the page signs in again then
      setTimeout(listen, AGAIN_MS);
    };
  }

  for (const start of ["pointerdown", "keydown"]) {
    place.addEventListener(start, (event) => {
      if (event.target.closest(CONTROLS)) press = new Promise((done) => { release = done; setTimeout(done, HELD_MS); });
    });
  }
  for (const end of ["pointerup", "pointercancel", "keyup"]) addEventListener(end, () => setTimeout(() => release()));
  place.addEventListener("input", (event) => {
    if (!event.target.matches("[data-opacity]")) return;
    opacity = event.target.value;
    sessionStorage.setItem("andon-opacity", opacity);
    dress();
  });
  addEventListener("pagehide", () => events.close());
  dress();
  listen();
})();
