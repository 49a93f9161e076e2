"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const video = get("video"), svg = get("lanes"), list = get("bouts");
const ROW = 30, TOP = 22, CURVE = 54;
const clock = (s) => {
  const tenths = Math.round(10 * Math.max(0, s)), m = Math.floor(tenths / 600), rest = (tenths % 600) / 10;
  const two = (x) => String(x).padStart(2, "0");
  return `${m >= 60 ? `${Math.floor(m / 60)}:${two(m % 60)}` : m}:${rest.toFixed(1).padStart(4, "0")}`;
};
const make = (name, attributes, parent, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent?.append(node);
  return node;
};

// The video: a camera has one or several files; each covers a part of the recording's clock.
let chapter = null, current = null, wanted = null;
const files = () => data.media[Number(get("camera").value)]?.files ?? [];
const show = (seconds) => {
  const found = files().find((f) => seconds < f.stop) ?? files().at(-1);
  if (!found) return;
  wanted = Math.max(0, seconds - found.start);
  if (found !== chapter) {
    chapter = found;
    get("failed").hidden = true;
    get("file").textContent = found.path;
    video.src = found.url;
  } else video.currentTime = wanted;
};
const seconds = () => (chapter ? video.currentTime + chapter.start : data.start);
video.addEventListener("loadedmetadata", () => { video.currentTime = wanted; });
video.addEventListener("ended", () => {
  const next = files()[files().indexOf(chapter) + 1];
  if (next) { show(next.start); video.play().catch(() => {}); }
});
video.addEventListener("error", () => { get("failed").hidden = false; });
get("camera").addEventListener("change", () => { const t = seconds(), plays = !video.paused; chapter = null; show(t); if (plays) video.play(); });

// The lanes.
const width = () => get("scroll").clientWidth * Math.exp((Number(get("zoom").value) / 100) * Math.log(Math.max(2, (data.stop - data.start) / 8)));
const span = Math.max(0.1, data.stop - data.start);
let cursor;
const draw = () => {
  const w = width(), x = (s) => ((s - data.start) / span) * w, height = TOP + data.labels.length * ROW + CURVE;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${w} ${height}`);
  svg.style.width = `${w}px`;
  const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  const step = steps.find((s) => x(data.start + s) >= 70) ?? 7200;
  for (let s = Math.ceil(data.start / step) * step; s <= data.stop; s += step) {
    make("line", { x1: x(s), x2: x(s), y1: TOP - 4, y2: height, class: "grid" }, svg);
    make("text", { x: x(s) + 2, y: 12, class: "small" }, svg, clock(s).replace(/\.0$/, ""));
  }
  data.labels.forEach((label, row) => {
    const y = TOP + row * ROW;
    make("line", { x1: 0, x2: w, y1: y + ROW, y2: y + ROW, class: "grid" }, svg);
    for (const [start, stop] of data.marks.filter((m) => m[2] === row))
      make("title", {}, make("rect", { x: x(start), width: Math.max(1, x(stop) - x(start)), y: y + ROW - 9, height: 6, class: "fill2" }, svg), `mark: ${label}, ${clock(start)} to ${clock(stop)}`);
    data.bouts.forEach((b, k) => {
      if (b.label !== row) return;
      const bar = make("rect", { x: x(b.start), width: Math.max(2, x(b.stop) - x(b.start)), y: y + 3, height: ROW - 14, rx: 2, class: b.doubtful ? "fill1 bar" : "fill0 bar", "fill-opacity": 0.35 + 0.65 * b.probability }, svg);
      make("title", {}, bar, `${label}, ${clock(b.start)} to ${clock(b.stop)}, probability ${b.probability.toFixed(2)}, uncertainty ${b.uncertainty.toFixed(2)}`);
      if (k === current) bar.classList.add("chosen");
      bar.addEventListener("click", (event) => { event.stopPropagation(); choose(k, true); });
    });
  });
  const y = (v) => height - 4 - v * (CURVE - 12);
  const line = (values, css) => make("polyline", { class: `line ${css}`, points: data.times.map((t, k) => `${x(t).toFixed(1)},${y(values[k]).toFixed(1)}`).join(" ") }, svg);
  line(data.probability, "c0");
  line(data.uncertainty, "c3");
  cursor = make("line", { y1: 0, y2: height, class: "cursor" }, svg);
  move();
};
const move = () => {
  const x = ((seconds() - data.start) / span) * width();
  cursor?.setAttribute("x1", x);
  cursor?.setAttribute("x2", x);
  get("now").textContent = clock(seconds());
};
svg.addEventListener("click", (event) => show(data.start + (event.offsetX / width()) * span));
get("zoom").addEventListener("input", () => { draw(); centre(seconds()); });
const centre = (s) => { const box = get("scroll"); box.scrollLeft = ((s - data.start) / span) * width() - box.clientWidth / 2; };
video.addEventListener("timeupdate", () => {
  move();
  const bout = data.bouts[current];
  if (bout && get("repeat").checked && !video.paused && seconds() >= bout.stop) show(bout.start);
});

// The list.
let shown = [];
const choose = (k, play) => {
  current = k;
  const bout = data.bouts[k];
  show(bout.start);
  if (play) video.play().catch(() => {});
  for (const item of list.children) item.classList.toggle("chosen", Number(item.dataset.bout) === k);
  if (document.activeElement?.tagName !== "BUTTON") list.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
  draw();
  centre(bout.start);
};
const fill = () => {
  const row = data.labels.indexOf(get("class").value);
  shown = data.bouts.map((_, k) => k).filter((k) => row < 0 || data.bouts[k].label === row);
  if (get("order").value === "doubt") shown.sort((a, b) => data.bouts[b].doubt - data.bouts[a].doubt);
  list.replaceChildren();
  for (const k of shown) {
    const bout = data.bouts[k], item = document.createElement("li"), button = document.createElement("button");
    item.dataset.bout = k;
    item.classList.toggle("chosen", k === current);
    button.type = "button";
    const strip = document.createElement("span");
    strip.className = "stills";
    for (const source of bout.pictures) { const image = new Image(); image.src = source; image.alt = ""; strip.append(image); }
    const words = document.createElement("span"), name = document.createElement("b"), facts = document.createElement("small");
    name.textContent = data.labels[bout.label];
    if (bout.doubtful) name.className = "poor";
    const weights = bout.weights.map((w, v) => `${data.media[v].view} ${w.toFixed(2)}`).join(", ");
    facts.textContent = `${clock(bout.start)} – ${clock(bout.stop)} · probability ${bout.probability.toFixed(2)} · uncertainty ${bout.uncertainty.toFixed(2)}${data.media.length > 1 ? ` · weights: ${weights}` : ""}${bout.mark ? ` · ${bout.mark}` : ""}`;
    words.append(name, document.createElement("br"), facts);
    button.append(strip, words);
    button.addEventListener("click", () => choose(k, true));
    item.append(button);
    list.append(item);
  }
};
for (const id of ["order", "class"]) get(id).addEventListener("change", fill);
document.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|VIDEO)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = shown.indexOf(current), step = { n: 1, p: -1 }[event.key];
  if (step && shown.length) choose(shown[Math.min(shown.length - 1, Math.max(0, at + step))], true);
  else if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); if (video.paused) video.play(); else video.pause(); }
});
for (const label of data.labels) { const name = document.createElement("div"); name.textContent = label; name.title = label; get("names").append(name); }
window.addEventListener("resize", draw);
fill();
if (shown.length) choose(shown[0], false);
else { show(data.start); draw(); }
