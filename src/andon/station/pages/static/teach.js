// Uploads, progress of what runs beside the line, and the sliders of rates.
(() => {
  "use strict";
  const AT_ONCE = 3;
  const AGAIN_MS = 1000;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));

  // What would be lost with the page: the browser asks before it is left

  let changed = null, sending = 0; // a form, and lists of files
  const change = (event) => { changed = event.target.closest("form[data-keep]") ?? changed; };
  document.addEventListener("input", change);
  document.addEventListener("drawn", change);
  document.addEventListener("submit", (event) => { if (event.target === changed) changed = null; });
  addEventListener("beforeunload", (event) => { if (changed || sending) event.preventDefault(); });

  // Uploads: one request a file, a few at a time; a full or absent station is tried again

  function upload(root) {
    const find = (selector) => root.querySelector(selector);
    const label = find("[data-label]"), kind = find("[data-kind]"), bar = find("progress");
    const state = find("[data-state]"), list = find("[data-refused]"), drop = find("[data-drop]");
    label.addEventListener("change", () => { kind.hidden = label.value !== "defect"; });

    async function send(file, words) {
      try {
        await file.slice(0, 1).arrayBuffer();
      } catch { // a folder, or a file that is gone
        return { added: 0, known: 0, refused: [fill(root.dataset.unreadable, { name: file.name })] };
      }
      const query = new URLSearchParams({ name: file.name, label: words });
      for (;;) {
        let answer;
        try {
          answer = await fetch(`${root.dataset.upload}?${query}`, {
            method: "POST", body: file, headers: { "X-CSRF-Token": root.dataset.csrf, "Content-Type": "application/octet-stream" },
          });
        } catch { /* the connection is lost */ }
        if (answer && answer.redirected) { location.reload(); return { added: 0, known: 0, refused: [] }; } // signed out
        if (answer && answer.status !== 503 && answer.status !== 429) {
          const content = await answer.json().catch(() => ({ detail: answer.statusText }));
          return answer.ok ? content : { added: 0, known: 0, refused: [`${file.name}: ${content.detail}`] };
        }
        if (!answer) state.textContent = root.dataset.lost;
        await pause(2 * AGAIN_MS);
      }
    }

    async function take(files) {
      const waiting = [...files], total = waiting.length, sum = { added: 0, known: 0, refused: 0 };
      const words = label.value === "defect" ? kind.querySelector("input").value : label.value;
      if (label.value === "defect" && !words.trim()) { kind.querySelector("input").focus(); return; }
      let done = 0;
      sending += 1;
      if (sending === 1) list.replaceChildren();
      [bar.hidden, bar.max, bar.value] = [false, total, 0];
      async function work() {
        for (let file = waiting.shift(); file; file = waiting.shift()) {
          const found = await send(file, words);
          done += 1;
          sum.added += found.added;
          sum.known += found.known;
          sum.refused += found.refused.length;
          for (const each of found.refused) {
            if (list.children.length >= 50) break;
            const item = document.createElement("li");
            item.textContent = each;
            list.append(item);
          }
          bar.value = done;
          state.textContent = fill(root.dataset.busy, { done, total });
        }
      }
      await Promise.all(Array.from({ length: AT_ONCE }, work));
      bar.hidden = true;
      state.textContent = fill(root.dataset.ended, sum);
      sending -= 1;
      if (!sending && !list.children.length) location.reload();
    }

    root.querySelectorAll("[data-files]").forEach((input) => {
      input.addEventListener("change", () => take(input.files).then(() => { input.value = ""; }));
    });
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      take(event.dataTransfer.files);
    });
  }

  // What runs beside the line: fetched again until it ends, then the page is loaded with its result

  async function follow(section) {
    for (let shown = section; shown && shown.dataset.again;) {
      await pause(AGAIN_MS);
      let text = "";
      try {
        const answer = await fetch(shown.dataset.again, { headers: { "X-Fetched-By-Page": "progress" } });
        if (answer.redirected || !answer.ok) { location.reload(); return; }
        text = await answer.text();
      } catch { continue; } // no connection: the next one may come through
      const next = new DOMParser().parseFromString(text, "text/html").querySelector("#teach-run");
      if (!next || next.dataset.run === "done") { location.reload(); return; }
      if (shown.matches(":active")) continue; // a button is being pressed
      const open = [...shown.querySelectorAll("details")].map((each) => each.open);
      next.querySelectorAll("details").forEach((each, i) => { each.open = open[i] ?? each.open; });
      if (shown.contains(document.activeElement) && document.activeElement.tagName === "BUTTON") {
        shown.replaceWith(next);
        next.querySelector("button")?.focus();
      } else shown.replaceWith(next);
      shown = next;
    }
  }

  // Sliders of rates, and the thresholds that they mean

  function rates(form) {
    const rows = JSON.parse(form.dataset.rates), low = Number(form.dataset.low), high = Number(form.dataset.high);
    const sliders = [...form.querySelectorAll("[data-slider]")];
    function show(slider) {
      const row = rows[slider.value], name = slider.dataset.slider, label = slider.parentElement;
      const percent = (100 * row.rate).toLocaleString(document.documentElement.lang, { maximumSignificantDigits: 3 });
      const rate = `${percent} %`;
      const words = fill(form.dataset.words, { ...row, rate, total: form.dataset.total, tried: form.dataset.tried });
      const told = name === "reject" && !row.supported ? rate : words; // there is no threshold that parts could be above
      label.querySelector("output").textContent = row.supported ? told : `${told} – ${form.dataset[`un${name}`]}`;
      label.querySelector("input[type=hidden]").value = row.rate;
      slider.setAttribute("aria-valuetext", rate);
      const x = Math.min(Math.max((600 * (row.threshold - low)) / (high - low), 1), 599);
      const mark = form.querySelector(`[data-line=${name}]`), text = mark.querySelector("text");
      mark.setAttribute("transform", `translate(${x} 0)`);
      const left = name === "review" ? x > 80 : x > 520; // the two do not cover each other
      text.setAttribute("x", left ? -5 : 5);
      text.setAttribute("text-anchor", left ? "end" : "start");
      mark.toggleAttribute("hidden", name === "reject" && !row.supported); // no part gets REJECT then
    }
    for (const slider of sliders) {
      slider.addEventListener("input", () => {
        const [review, reject] = sliders; // a reject is a review, too
        if (slider === review && Number(reject.value) > Number(review.value)) reject.value = review.value;
        if (slider === reject && Number(review.value) < Number(reject.value)) review.value = reject.value;
        sliders.forEach(show);
      });
      show(slider);
    }
  }

  document.querySelectorAll("[data-upload]").forEach(upload);
  document.querySelectorAll("#teach-run[data-again]").forEach(follow);
  document.querySelectorAll("[data-rates]").forEach(rates);
})();
