// What each page does: light or dark as the system says, until a person says otherwise; and a lost connection.
"use strict";

(() => {
  const root = document.documentElement;
  const kept = localStorage.getItem("andon-theme");
  if (kept) root.dataset.theme = kept;
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("andon-theme", root.dataset.theme);
  });
  // A lost connection is told, until an answer comes again.
  const lost = (is) => () => {
    document.querySelector(".lost").hidden = !is;
  };
  document.addEventListener("htmx:sendError", lost(true));
  document.addEventListener("htmx:afterOnLoad", lost(false));
  // What a page asks for by itself does not keep a person signed in.
  document.addEventListener("htmx:configRequest", (event) => {
    if (event.detail.triggeringEvent?.type !== "click" && event.detail.verb === "get") event.detail.headers["X-Andon-By-Itself"] = "yes";
  });
})();
