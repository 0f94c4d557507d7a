// The state of the station in the bar above each page, and a banner while the connection is lost.
(() => {
  "use strict";
  const AGAIN_MS = 3000;
  const shown = document.querySelector("[data-state]"), banner = document.querySelector("[data-lost-banner]");
  if (!shown) return;

  async function look() {
    let kind = "lost";
    try {
      const answer = await fetch(shown.dataset.state, { headers: { "X-Fetched-By-Page": "state" } });
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
  // What is being pressed stays until it is let go; what is fetched each second comes again.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.matches(":active")) event.detail.shouldSwap = false;
  });
  // What a page asks for by itself does not keep a person signed in.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.triggeringEvent?.type !== "click" && event.detail.verb === "get") event.detail.headers["X-Fetched-By-Page"] = "part";
  });
})();
