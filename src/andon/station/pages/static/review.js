// Zoom, pan, a box around the defect, and keys for the decision.
(() => {
  "use strict";
  const pair = document.querySelector("[data-pair]"), form = document.querySelector("[data-decide]");
  if (!pair) return;
  const MOST = 12, STEP = 1.4, SHARES = 10000;
  const frames = [...pair.querySelectorAll("[data-frame]")], box = form.querySelector("[data-box]");
  const view = { scale: 1, x: 0, y: 0 };
  let tool = "pan", drawn = null;

  function show() {
    for (const frame of frames) {
      const stage = frame.querySelector("[data-stage]");
      const reach = [frame.clientWidth * (1 - view.scale), frame.clientHeight * (1 - view.scale)];
      view.x = Math.min(0, Math.max(reach[0], view.x));
      view.y = Math.min(0, Math.max(reach[1], view.y));
      stage.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    }
  }

  function zoom(factor, x, y) {
    const scale = Math.min(MOST, Math.max(1, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    show();
  }

  const middle = () => [frames[0].clientWidth / 2, frames[0].clientHeight / 2];
  const at = (event, frame) => {
    const bounds = frame.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };

  // Where a point of the frame lies in the picture, in its own pixels as they are shown.
  function pixel(frame, [x, y]) {
    const photo = frame.querySelector(".photo");
    if (!photo?.naturalWidth) return null;
    const fit = Math.min(photo.clientWidth / photo.naturalWidth, photo.clientHeight / photo.naturalHeight);
    const left = (photo.clientWidth - photo.naturalWidth * fit) / 2, top = (photo.clientHeight - photo.naturalHeight * fit) / 2;
    const clip = (value, most) => Math.min(most, Math.max(0, value));
    return [
      clip(((x - view.x) / view.scale - photo.offsetLeft - left) / fit, photo.naturalWidth),
      clip(((y - view.y) / view.scale - photo.offsetTop - top) / fit, photo.naturalHeight),
    ];
  }

  function choose(name) {
    tool = name;
    for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
    for (const frame of frames) frame.classList.toggle("drawing", name === "box");
  }

  for (const frame of frames) {
    const pointers = new Map();
    let start = null, spread = 0;
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(event.deltaY < 0 ? STEP : 1 / STEP, ...at(event, frame));
    }, { passive: false });
    frame.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      frame.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event, frame));
      start = at(event, frame);
      spread = 0;
      if (tool === "box" && pointers.size === 1) {
        for (const each of document.querySelectorAll(".drawn")) each.remove();
        drawn = document.createElement("div");
        drawn.className = "drawn";
        frame.append(drawn);
      }
    });
    frame.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = pointers.get(event.pointerId), now = at(event, frame);
      pointers.set(event.pointerId, now);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()], distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (spread) zoom(distance / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        spread = distance;
      } else if (tool === "pan") {
        view.x += now[0] - before[0];
        view.y += now[1] - before[1];
        show();
      } else if (drawn) {
        Object.assign(drawn.style, {
          left: `${Math.min(start[0], now[0])}px`, top: `${Math.min(start[1], now[1])}px`,
          width: `${Math.abs(now[0] - start[0])}px`, height: `${Math.abs(now[1] - start[1])}px`,
        });
      }
    });
    const end = (event) => {
      if (!pointers.delete(event.pointerId) || tool !== "box" || !drawn) return;
      const a = pixel(frame, start), b = pixel(frame, at(event, frame));
      const photo = frame.querySelector(".photo");
      if (!a || !b || Math.abs(a[0] - b[0]) < 2 || Math.abs(a[1] - b[1]) < 2) { drawn.remove(); box.value = ""; drawn = null; return; }
      const numbers = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1])];
      const sides = [photo.naturalWidth, photo.naturalHeight, photo.naturalWidth, photo.naturalHeight];
      box.value = numbers.map((number, i) => Math.round((SHARES * number) / sides[i])).join(",");
      drawn = null;
      choose("pan");
    };
    frame.addEventListener("pointerup", end);
    frame.addEventListener("pointercancel", end);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom], [data-tool]");
    if (button?.dataset.tool) choose(button.dataset.tool);
    if (!button?.dataset.zoom) return;
    if (button.dataset.zoom === "fit") Object.assign(view, { scale: 1, x: 0, y: 0 });
    zoom({ in: STEP, out: 1 / STEP, fit: 1 }[button.dataset.zoom], ...middle());
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const wanted = form.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (wanted) wanted.click();
    else if (event.key === "+") zoom(STEP, ...middle());
    else if (event.key === "-") zoom(1 / STEP, ...middle());
    else if (event.key.startsWith("Arrow") && view.scale > 1) {
      view.x -= 40 * ((event.key === "ArrowRight") - (event.key === "ArrowLeft"));
      view.y -= 40 * ((event.key === "ArrowDown") - (event.key === "ArrowUp"));
      show();
      event.preventDefault();
    }
  });
})();
