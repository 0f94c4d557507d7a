// Zoom, pan, a box around the defect, and keys for the decision.
(() => {
  "use strict";
  const pair = document.querySelector("[data-pair]"), form = document.querySelector("[data-decide]");
  if (!pair) return;
  const MOST = 12, STEP = 1.4, SHARES = 10000;
  const NEW = 0.2, FINE = 0.01; // a box begun with the keyboard, and its steps: shares of what is seen
  const LOOK_MS = 500; // before this, a press was meant for the part before
  const LEAST_PX = 2; // of a box that is drawn with the pointer, as it is shown
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const frames = [...pair.querySelectorAll("[data-frame]")], field = form.querySelector("[data-box]");
  const said = document.querySelector("[data-said]");
  const view = { scale: 1, x: 0, y: 0 };
  let tool = "pan", box = null; // left, top, width, height: shares of the picture
  const boxes = frames.map((frame) => {
    const made = document.createElement("div");
    made.className = "drawn";
    frame.append(made);
    return made;
  });
  const clip = (value, low, high) => Math.min(high, Math.max(low, value));

  function show() {
    frames.forEach((frame, i) => {
      const reach = [frame.clientWidth * (1 - view.scale), frame.clientHeight * (1 - view.scale)];
      view.x = clip(view.x, reach[0], 0);
      view.y = clip(view.y, reach[1], 0);
      frame.querySelector("[data-stage]").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
      const seen = placed(frame);
      boxes[i].hidden = !box || !seen;
      if (boxes[i].hidden) return;
      ["left", "top", "width", "height"].forEach((side, j) => {
        boxes[i].style[side] = `${(j < 2 ? seen[j] : 0) + box[j] * seen[2 + (j % 2)]}px`;
      });
    });
    field.value = box ? box.map((share) => Math.round(SHARES * share)).join(",") : "";
  }

  function zoom(factor, x, y) {
    const scale = clip(view.scale * factor, 1, MOST);
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

  // Where the picture lies in its frame: left, top, width, height; null until it is loaded.
  function placed(frame) {
    const photo = frame.querySelector(".photo");
    if (!photo?.naturalWidth) return null;
    const fit = Math.min(photo.clientWidth / photo.naturalWidth, photo.clientHeight / photo.naturalHeight);
    const sides = [photo.naturalWidth * fit, photo.naturalHeight * fit];
    return [
      view.x + view.scale * (photo.offsetLeft + (photo.clientWidth - sides[0]) / 2),
      view.y + view.scale * (photo.offsetTop + (photo.clientHeight - sides[1]) / 2),
      view.scale * sides[0], view.scale * sides[1],
    ];
  }

  // A point of a frame as shares of its picture.
  const share = (point, seen) => point.map((value, i) => clip((value - seen[i]) / seen[2 + i], 0, 1));

  function choose(name) {
    tool = name;
    for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
    for (const frame of frames) frame.classList.toggle("drawing", name === "box");
  }

  // The box with the keyboard: it begins in the middle of what is seen.
  function begin() {
    const seen = placed(frames[0]);
    if (!seen) return;
    const size = NEW / view.scale;
    box ??= [...share(middle(), seen).map((centre) => clip(centre - size / 2, 0, 1 - size)), size, size];
    frames[0].focus();
    tell("box");
    show();
  }

  function edit(event) {
    const move = MOVES[event.key];
    if (event.key === "Enter") {
      choose("pan");
      tell("kept");
    } else if (event.key === "Escape") {
      box = null;
      choose("pan");
      tell("dropped");
    } else if (move) {
      const step = FINE / view.scale;
      for (const i of [0, 1]) {
        if (event.shiftKey) box[2 + i] = clip(box[2 + i] + step * move[i], step, 1 - box[i]);
        else box[i] = clip(box[i] + step * move[i], 0, 1 - box[2 + i]);
      }
      reveal();
      tell("box");
    } else return;
    show();
    event.preventDefault();
  }

  function reveal() { // move the picture so that the middle of the box is seen
    const seen = placed(frames[0]), sides = [frames[0].clientWidth, frames[0].clientHeight];
    ["x", "y"].forEach((axis, i) => {
      const centre = seen[i] + seen[2 + i] * (box[i] + box[2 + i] / 2);
      view[axis] += clip(centre, 0, sides[i]) - centre;
    });
  }

  function tell(what) {
    const names = ["left", "top", "width", "height"];
    const values = box ? Object.fromEntries(names.map((name, i) => [name, Math.round(100 * box[i])])) : {};
    said.textContent = said.dataset[what].replace(/\{(\w+)\}/g, (_, name) => values[name]);
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
      if (tool === "box") box = null;
      show();
    });
    frame.addEventListener("pointermove", (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = pointers.get(event.pointerId), now = at(event, frame), seen = placed(frame);
      pointers.set(event.pointerId, now);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()], distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (spread) zoom(distance / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
        spread = distance;
      } else if (tool === "pan") {
        view.x += now[0] - before[0];
        view.y += now[1] - before[1];
        show();
      } else if (seen) {
        const [a, b] = [share(start, seen), share(now, seen)];
        box = [...a.map((value, i) => Math.min(value, b[i])), ...a.map((value, i) => Math.abs(value - b[i]))];
        show();
      }
    });
    const end = (event) => {
      if (!pointers.delete(event.pointerId) || tool !== "box") return;
      const seen = placed(frame);
      if (!box || box[2] * seen[2] < LEAST_PX || box[3] * seen[3] < LEAST_PX) box = null;
      else choose("pan");
      tell(box ? "kept" : "dropped");
      show();
    };
    frame.addEventListener("pointerup", end);
    frame.addEventListener("pointercancel", end);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom], [data-tool]");
    if (button?.dataset.tool) choose(button.dataset.tool);
    if (button?.dataset.tool === "box" && !event.detail) begin(); // no pointer has pressed it
    if (!button?.dataset.zoom) return;
    if (button.dataset.zoom === "fit") Object.assign(view, { scale: 1, x: 0, y: 0 });
    zoom({ in: STEP, out: 1 / STEP, fit: 1 }[button.dataset.zoom], ...middle());
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const wanted = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`), move = MOVES[event.key];
    if (wanted) { if (!event.repeat) wanted.click(); }
    else if (event.key === "+") zoom(STEP, ...middle());
    else if (event.key === "-") zoom(1 / STEP, ...middle());
    else if (tool === "box" && box && (event.target === frames[0] || event.key === "Escape")) edit(event);
    else if (move && view.scale > 1) {
      view.x -= 40 * move[0];
      view.y -= 40 * move[1];
      show();
      event.preventDefault();
    }
  });
  // Nobody decides on a picture that is not seen yet.
  const decisions = [...form.querySelectorAll("[name=do]")], photo = pair.querySelector(".photo");
  const hold = (held) => { for (const button of decisions) button.disabled = held; };
  hold(true);
  const seen = photo && !photo.complete ? new Promise((done) => { photo.onload = photo.onerror = done; }) : Promise.resolve();
  seen.then(() => setTimeout(hold, LOOK_MS, false));
  addEventListener("resize", show);
  show();
})();
