// A mask that a person paints, in the pixels of the frame: opaque orange is anomalous.
const PAINT = [255, 140, 0, 255];
const STEPS = 30;

export class Brush {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { willReadFrequently: true });
    this.painting = this.erasing = false;
    this.radius = 8;
    this.before = [];
    this.last = null;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { this.last = null; });
  }

  // Takes a grey picture, 0 or 255, as the mask to begin with.
  load(picture) {
    Object.assign(this.canvas, { width: picture.width, height: picture.height });
    this.before = [];
    this.radius = Math.max(1, Math.round(Math.max(picture.width, picture.height) / 80));
    this.pen.drawImage(picture, 0, 0);
    this.#each((data, at) => data.set(data[at] > 127 ? PAINT : [0, 0, 0, 0], at));
  }

  get empty() {
    let found = false;
    const { data } = this.#pixels();
    for (let at = 3; at < data.length && !found; at += 4) found = data[at] > 127;
    return !found;
  }

  undo() {
    const pixels = this.before.pop();
    if (pixels) this.pen.putImageData(pixels, 0, 0);
  }

  clear() {
    this.#keep();
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  scale(by) {
    this.radius = Math.min(400, Math.max(1, by > 1 ? Math.ceil(this.radius * by) : Math.floor(this.radius * by)));
  }

  // Edges that the canvas has smoothed are decided, so that every pixel is one or the other.
  url() {
    this.#each((data, at) => data.set(data[at + 3] > 127 ? PAINT : [0, 0, 0, 0], at));
    return this.canvas.toDataURL("image/png");
  }

  #down(event) {
    if (!this.painting || event.button !== 0) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.#keep();
    this.last = this.#place(event);
    this.#stroke(this.last);
  }

  #move(event) {
    if (!this.last) return;
    const here = this.#place(event);
    this.#stroke(here);
    this.last = here;
  }

  #stroke([x, y]) {
    const { pen } = this;
    pen.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    Object.assign(pen, { lineWidth: 2 * this.radius, lineCap: "round", lineJoin: "round", strokeStyle: `rgb(${PAINT.slice(0, 3).join(" ")})` });
    pen.beginPath();
    pen.moveTo(...this.last);
    pen.lineTo(x + 0.01, y);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  #keep() {
    this.before.push(this.#pixels());
    if (this.before.length > STEPS) this.before.shift();
  }

  #pixels() {
    return this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  #each(change) {
    const pixels = this.#pixels();
    for (let at = 0; at < pixels.data.length; at += 4) change(pixels.data, at);
    this.pen.putImageData(pixels, 0, 0);
  }
}
