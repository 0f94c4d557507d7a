// The state of the station in the bar above each page, and a banner while the connection is lost.
(() => {
  "use strict";
  const AGAIN_MS = 3000, PATIENCE_MS = 5000, LONGEST_MS = 30_000;
  if (!document.querySelector("[data-state]")) return;
  let active = false; // somebody has pressed something since the last look: it keeps the session, as a click does

  async function look() {
    const shown = document.querySelector("[data-state]"), banner = document.querySelector("[data-lost-banner]");
    let kind = "lost";
    try {
      const headers = active ? {} : { "X-Fetched-By-Page": "state" };
      active = false;
      const answer = await fetch(shown.dataset.state, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.redirected) { location.reload(); return; } // signed out
      if (answer.ok) kind = (await answer.json()).ready ? "ready" : "waits";
    } catch { /* lost */ }
    banner.hidden = kind !== "lost";
    const [mark, words] = shown.children;
    if (words.textContent !== shown.dataset[kind]) {
      mark.textContent = { ready: "●", waits: "▲", lost: "✕" }[kind];
      words.textContent = shown.dataset[kind];
      shown.className = `state ${kind}`;
    }
    setTimeout(look, AGAIN_MS);
  }

  setTimeout(look, AGAIN_MS);
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => { active = true; }, { capture: true });
  // A second press of a button that changes something would do it twice.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
    setTimeout(() => delete form.dataset.sent, LONGEST_MS);
  });
  addEventListener("pageshow", () => { for (const form of document.forms) delete form.dataset.sent; });
  // What is being pressed stays until it is let go; what is fetched each second comes again.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.matches(":active")) event.detail.shouldSwap = false;
  });
  // What a page asks for by itself does not keep a person signed in.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.triggeringEvent?.type !== "click" && event.detail.verb === "get") event.detail.headers["X-Fetched-By-Page"] = "part";
  });
})();
