// Draws crop, region of interest and areas to ignore on a picture. Used by the station's pages and `andon regions`.
// State: crop [x, y, width, height] or null; include and ignore: polygons of corners [x, y]. Pixels of the picture.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const NEAR = 14; // screen pixels within which a corner is hit
  const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

  class Drawing {
    constructor(root) {
      this.root = root;
      this.label = root.dataset;
      this.width = Number(root.dataset.width);
      this.height = Number(root.dataset.height);
      this.shapes = JSON.parse(root.dataset.shapes);
      this.past = [];
      this.future = [];
      this.corners = []; // of the shape that is being drawn
      this.cursor = [Math.round(this.width / 2), Math.round(this.height / 2)];
      this.keyboard = false;
      this.fingers = new Map(); // where each pointer is that is down
      this.held = null; // a corner that is dragged, or the start of a rectangle
      this.zoom = 0;
      const find = (name) => root.querySelector(`[data-part="${name}"]`);
      [this.stage, this.sheet, this.image, this.svg] = ["stage", "sheet", "image", "svg"].map(find);
      [this.readout, this.list, this.field] = ["readout", "list", "field"].map(find);
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.listen();
      this.scale(0);
      if (this.image.complete) this.sample();
      else this.image.addEventListener("load", () => this.sample());
    }

    listen() {
      const on = (event, call) => this.stage.addEventListener(event, call);
      on("pointerdown", (event) => this.down(event));
      on("pointermove", (event) => this.move(event));
      on("pointerup", (event) => this.up(event));
      on("pointercancel", (event) => { this.fingers.delete(event.pointerId); this.release(); });
      on("dblclick", () => this.finish());
      on("keydown", (event) => this.key(event));
      on("focus", () => { this.keyboard = true; this.show(); });
      on("blur", () => { this.keyboard = false; this.show(); });
      for (const button of this.root.querySelectorAll("button[data-do]")) {
        button.addEventListener("click", () => this[button.dataset.do]());
      }
      for (const choice of this.root.querySelectorAll("input[type=radio]")) {
        choice.addEventListener("change", () => this.cancel());
      }
    }

    // What is chosen

    get area() { return this.root.querySelector("input[data-choice=area]:checked").value; }

    get form() {
      return this.area === "crop" ? "rectangle" : this.root.querySelector("input[data-choice=form]:checked").value;
    }

    // Changes; each can be undone

    change(call) {
      this.past.push(JSON.stringify(this.shapes));
      this.future = [];
      call();
      this.corners = [];
      this.show();
    }

    add(corners) {
      if (new Set(corners.map(String)).size < 3 || area(corners) < 1) return this.cancel();
      const name = this.area;
      if (name === "crop") {
        const [x, y, right, bottom] = box(corners);
        if (right - x < 8 || bottom - y < 8) return this.cancel();
        return this.change(() => { this.shapes.crop = [x, y, right - x, bottom - y]; });
      }
      return this.change(() => { this.shapes[name].push(corners); });
    }

    remove(name, index) {
      this.change(() => {
        if (name === "crop") this.shapes.crop = null;
        else this.shapes[name].splice(index, 1);
      });
    }

    undo() {
      if (this.corners.length) this.corners.pop();
      else if (this.past.length) {
        this.future.push(JSON.stringify(this.shapes));
        this.shapes = JSON.parse(this.past.pop());
      }
      this.show();
    }

    redo() {
      if (!this.future.length) return;
      this.past.push(JSON.stringify(this.shapes));
      this.shapes = JSON.parse(this.future.pop());
      this.show();
    }

    cancel() { this.corners = []; this.held = null; this.show(); }

    finish() { if (this.form === "polygon" && this.corners.length > 2) this.add(this.corners); }

    corner(point) {
      if (this.form === "rectangle") {
        if (this.corners.length) this.add(rectangle(this.corners[0], point));
        else { this.corners = [point]; this.show(); }
        return;
      }
      const first = this.corners[0], last = this.corners[this.corners.length - 1];
      if (this.corners.length > 2 && (this.close(point, first) || String(point) === String(last))) this.finish();
      else if (!last || String(point) !== String(last)) { this.corners.push(point); this.show(); }
    }

    zoomIn() { this.scale(1); }

    zoomOut() { this.scale(-1); }

    scale(step) {
      this.zoom = Math.min(Math.max(this.zoom + step, 0), ZOOMS.length - 1);
      const whole = `min(100%, ${(65 * this.width) / this.height}vh)`; // all of the picture is seen
      this.sheet.style.setProperty("width", `calc(${ZOOMS[this.zoom]} * ${whole})`);
      this.reveal();
      this.show();
    }

    // Pointer

    point(event) {
      const shown = this.svg.getBoundingClientRect();
      const x = ((event.clientX - shown.left) / shown.width) * this.width;
      const y = ((event.clientY - shown.top) / shown.height) * this.height;
      return this.inside([Math.round(x), Math.round(y)]);
    }

    inside([x, y]) { return [Math.min(Math.max(x, 0), this.width), Math.min(Math.max(y, 0), this.height)]; }

    close(one, other) {
      const scale = this.svg.getBoundingClientRect().width / this.width;
      return Math.hypot(one[0] - other[0], one[1] - other[1]) * scale < NEAR;
    }

    down(event) {
      if (event.button || !this.sheet.contains(event.target)) return; // the rest is the scrollbar
      this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (this.fingers.size > 1) { this.release(); return; } // two fingers move the picture
      const point = this.point(event);
      this.stage.setPointerCapture(event.pointerId);
      this.held = (!this.corners.length && this.hit(point)) || { start: point };
    }

    // Let go of what is dragged; it is not drawn.
    release() {
      if (this.held?.dragged) this.corners = [];
      this.held = null;
      this.show();
    }

    move(event) {
      const finger = this.fingers.get(event.pointerId), now = [event.clientX, event.clientY];
      if (finger) this.fingers.set(event.pointerId, now);
      if (finger && this.fingers.size > 1) {
        this.stage.scrollBy((finger[0] - now[0]) / this.fingers.size, (finger[1] - now[1]) / this.fingers.size);
        return;
      }
      const point = this.point(event);
      this.cursor = point;
      if (this.held && this.held.place) {
        if (!this.held.kept) { this.past.push(JSON.stringify(this.shapes)); this.future = []; this.held.kept = true; }
        this.held.place(point);
      } else if (this.held && this.form === "rectangle" && !this.close(point, this.held.start) && !this.corners.length) {
        this.corners = [this.held.start];
        this.held.dragged = true;
      }
      this.show();
    }

    up(event) {
      this.fingers.delete(event.pointerId);
      const held = this.held, point = this.point(event);
      this.held = null;
      if (!held || held.place) return;
      if (held.dragged) this.add(rectangle(this.corners[0], point));
      else this.corner(point);
    }

    hit(point) { // a corner of a finished shape
      for (const name of ["include", "ignore"]) {
        for (const polygon of this.shapes[name]) {
          const index = polygon.findIndex((corner) => this.close(corner, point));
          if (index >= 0) return { place: (to) => { polygon[index] = to; } };
        }
      }
      if (!this.shapes.crop) return null;
      const [x, y, w, h] = this.shapes.crop;
      const corners = rectangle([x, y], [x + w, y + h]);
      const index = corners.findIndex((corner) => this.close(corner, point));
      if (index < 0) return null;
      const fixed = corners[(index + 2) % 4];
      return {
        place: (to) => {
          const [left, top, right, bottom] = box([fixed, to]);
          if (right - left >= 8 && bottom - top >= 8) this.shapes.crop = [left, top, right - left, bottom - top];
        },
      };
    }

    // Keyboard

    key(event) {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const command = event.ctrlKey || event.metaKey;
      if (moves[event.key]) {
        const step = event.shiftKey ? Math.max(10, Math.round(this.width / 20)) : 1;
        this.cursor = this.inside(this.cursor.map((value, i) => value + step * moves[event.key][i]));
        this.reveal();
        this.show();
      } else if (event.key === "Enter" || event.key === " ") this.corner(this.cursor);
      else if (event.key === "Backspace" || (command && event.key === "z")) this.undo();
      else if (command && event.key === "y") this.redo();
      else if (event.key === "Escape") this.cancel();
      else if (event.key === "+") this.zoomIn();
      else if (event.key === "-") this.zoomOut();
      else return;
      event.preventDefault();
    }

    reveal() { // scroll the cursor into view
      const scale = this.svg.getBoundingClientRect().width / this.width;
      const view = this.stage, [x, y] = this.cursor.map((value) => value * scale);
      if (x < view.scrollLeft || x > view.scrollLeft + view.clientWidth) view.scrollLeft = x - view.clientWidth / 2;
      if (y < view.scrollTop || y > view.scrollTop + view.clientHeight) view.scrollTop = y - view.clientHeight / 2;
    }

    // Pixels

    sample() {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [this.image.naturalWidth, this.image.naturalHeight];
      this.pixels = canvas.getContext("2d", { willReadFrequently: true });
      this.pixels.drawImage(this.image, 0, 0);
      this.show();
    }

    value([x, y]) {
      if (!this.pixels) return "";
      const { width, height } = this.pixels.canvas;
      const at = [Math.floor((x * width) / this.width), Math.floor((y * height) / this.height)];
      const [r, g, b] = this.pixels.getImageData(Math.min(at[0], width - 1), Math.min(at[1], height - 1), 1, 1).data;
      return r === g && g === b ? `  ${r}` : `  R ${r} G ${g} B ${b}`;
    }

    // What is seen

    show() {
      const scale = this.svg.getBoundingClientRect().width / this.width || 1;
      const drawn = [];
      for (const name of ["include", "ignore"]) {
        for (const polygon of this.shapes[name]) drawn.push(...shape(polygon, name, scale));
      }
      if (this.shapes.crop) {
        const [x, y, w, h] = this.shapes.crop;
        drawn.push(...shape(rectangle([x, y], [x + w, y + h]), "crop", scale));
      }
      if (this.corners.length) {
        const open = this.form === "rectangle" ? rectangle(this.corners[0], this.cursor) : [...this.corners, this.cursor];
        drawn.push(...shape(open, `${this.area} draw-open`, scale));
      }
      if (this.keyboard) drawn.push(cross(this.cursor, scale));
      this.svg.replaceChildren(...drawn);
      this.readout.textContent = `x ${this.cursor[0]}  y ${this.cursor[1]}${this.value(this.cursor)}`;
      this.tell();
    }

    tell() {
      const text = JSON.stringify(this.shapes);
      for (const button of this.root.querySelectorAll("button[data-do]")) {
        const idle = { undo: !this.past.length && !this.corners.length, redo: !this.future.length };
        button.disabled = Boolean({ ...idle, finish: this.form !== "polygon" || this.corners.length < 3 }[button.dataset.do]);
      }
      if (text === this.told) return;
      this.told = text;
      if (this.field) this.field.value = text;
      const all = [...(this.shapes.crop ? [["crop", 0]] : [])];
      for (const name of ["include", "ignore"]) this.shapes[name].forEach((_, i) => all.push([name, i]));
      this.list.replaceChildren(...all.map(([name, index]) => {
        const item = document.createElement("li"), button = document.createElement("button");
        const what = `${this.label[name]}${name === "crop" ? "" : ` ${index + 1}`}`;
        item.className = `draw-${name}`;
        item.append(document.createElement("span"), what);
        button.type = "button";
        button.textContent = this.label.remove;
        button.setAttribute("aria-label", `${this.label.remove}: ${what}`);
        button.addEventListener("click", () => this.remove(name, index));
        item.append(button);
        return item;
      }));
      this.root.dispatchEvent(new CustomEvent("drawn", { bubbles: true, detail: lines(this.shapes) }));
    }
  }

  function rectangle([x, y], [right, bottom]) { return [[x, y], [right, y], [right, bottom], [x, bottom]]; }

  function box(corners) {
    const xs = corners.map((each) => each[0]), ys = corners.map((each) => each[1]);
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }

  function area(corners) { // of a polygon, in pixels
    const sum = corners.reduce((total, [x, y], i) => {
      const [nextX, nextY] = corners[(i + 1) % corners.length];
      return total + x * nextY - nextX * y;
    }, 0);
    return Math.abs(sum) / 2;
  }

  function element(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function shape(corners, kind, scale) {
    const polygon = element("polygon", { points: corners.join(" "), class: `draw-shape draw-${kind}` });
    const size = 5 / scale;
    const squares = corners.map(([x, y]) => element("rect", {
      x: x - size, y: y - size, width: 2 * size, height: 2 * size, class: `draw-corner draw-${kind}`,
    }));
    return [polygon, ...squares];
  }

  function cross([x, y], scale) {
    const long = 18 / scale;
    const path = `M${x - long} ${y}H${x + long}M${x} ${y - long}V${y + long}`;
    return element("path", { d: path, class: "draw-cross" });
  }

  function lines(shapes) { // of the recipe, in its section [geometry]
    const found = [];
    if (shapes.crop) found.push(`crop = [${shapes.crop.join(", ")}]`);
    for (const name of ["include", "ignore"]) {
      if (!shapes[name].length) continue;
      const polygons = shapes[name].map((each) => `  [${each.map(([x, y]) => `[${x}, ${y}]`).join(", ")}],\n`);
      found.push(`${name} = [\n${polygons.join("")}]`);
    }
    return found.join("\n");
  }

  // The page of `andon regions`: a whole recipe to copy or to save

  function recipe(page) {
    const { before, keys, after, file } = page.dataset;
    const text = page.querySelector("[data-part=recipe]"), area = page.querySelector("[data-part=lines]");
    page.addEventListener("drawn", (event) => {
      area.textContent = event.detail;
      text.textContent = [before, "[geometry]", keys, event.detail, after].filter(Boolean).join("\n") + "\n";
    });
    page.querySelector("[data-save]").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text.textContent], { type: "application/toml" }));
      link.download = file;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  document.querySelectorAll("[data-recipe]").forEach(recipe);
  document.querySelectorAll("[data-draw]").forEach((root) => new Drawing(root));
})();
