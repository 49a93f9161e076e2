"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const video = get("video"), svg = get("lanes"), list = get("bouts");
const items = [...data.bouts, ...data.marks.filter((m) => m.missed)];
const ROW = 30, TOP = 22, CURVE = 54;
const clock = (s) => {
  const sign = Math.round(10 * s) < 0 ? "\u2212" : "", tenths = Math.abs(Math.round(10 * s)), m = Math.floor(tenths / 600), rest = (tenths % 600) / 10;
  const two = (x) => String(x).padStart(2, "0");
  return `${sign}${m >= 60 ? `${Math.floor(m / 60)}:${two(m % 60)}` : m}:${rest.toFixed(1).padStart(4, "0")}`;
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
  get("live").hidden = Boolean(found);
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
    const bar = (one, height, from, css) => make("rect", { x: x(one.start), width: Math.max(2, x(one.stop) - x(one.start)), y: y + from, height, class: css }, svg);
    const listed = (one, rect) => {
      rect.classList.toggle("chosen", one === items[current]);
      rect.addEventListener("click", (event) => { event.stopPropagation(); choose(items.indexOf(one), true); });
    };
    for (const m of data.marks.filter((m) => m.label === row)) {
      const rect = bar(m, 6, ROW - 9, m.missed ? "fill4 bar" : "fill2");
      make("title", {}, rect, `mark: ${label}, ${clock(m.start)} to ${clock(m.stop)}${m.missed ? `: ${m.missed}` : ""}`);
      if (m.missed) listed(m, rect);
    }
    for (const b of data.bouts.filter((b) => b.label === row)) {
      const rect = bar(b, ROW - 14, 3, b.doubtful ? "fill1 bar" : "fill0 bar");
      rect.setAttribute("rx", 2);
      rect.setAttribute("fill-opacity", 0.35 + 0.65 * b.probability);
      make("title", {}, rect, `${label}, ${clock(b.start)} to ${clock(b.stop)}, probability ${b.probability.toFixed(2)}, uncertainty ${b.uncertainty.toFixed(2)}`);
      listed(b, rect);
    }
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
  const bout = items[current];
  if (bout && get("repeat").checked && !video.paused && seconds() >= bout.stop) show(bout.start);
});

// The list.
let shown = [];
const choose = (k, play) => {
  current = k;
  const bout = items[k];
  show(bout.start);
  if (play) video.play().catch(() => {});
  for (const item of list.children) item.classList.toggle("chosen", Number(item.dataset.bout) === k);
  if (document.activeElement?.tagName !== "BUTTON") list.querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
  draw();
  centre(bout.start);
};
const fill = () => {
  const row = data.labels.indexOf(get("class").value);
  const kind = get("show").value;
  shown = items.map((_, k) => k).filter((k) => (row < 0 || items[k].label === row) && (!kind || (kind === "marks") === Boolean(items[k].missed)));
  const first = (one) => (one.missed ? 2 : one.doubt);
  shown.sort((a, b) => (get("order").value === "doubt" && first(items[b]) - first(items[a])) || items[a].start - items[b].start);
  get("none").hidden = shown.length > 0;
  list.hidden = !shown.length;
  list.replaceChildren();
  for (const k of shown) {
    const bout = items[k], item = document.createElement("li"), button = document.createElement("button");
    item.dataset.bout = k;
    item.classList.toggle("chosen", k === current);
    button.type = "button";
    const strip = document.createElement("span");
    strip.className = "stills";
    for (const source of bout.pictures) { const image = new Image(); image.src = source; image.alt = ""; strip.append(image); }
    const words = document.createElement("span"), name = document.createElement("b"), facts = document.createElement("small");
    name.textContent = data.labels[bout.label];
    const when = `${clock(bout.start)} – ${clock(bout.stop)}`;
    if (bout.missed) {
      name.className = "missing";
      facts.textContent = `${when} · missed mark · ${bout.missed}`;
    } else {
      if (bout.doubtful) name.className = "poor";
      const weights = bout.weights.map((w, v) => `${data.media[v].view} ${w.toFixed(2)}`).join(", ");
      facts.textContent = `${when} · probability ${bout.probability.toFixed(2)} · uncertainty ${bout.uncertainty.toFixed(2)}${data.media.length > 1 ? ` · weights: ${weights}` : ""}${bout.mark ? ` · ${bout.mark}` : ""}`;
    }
    words.append(name, document.createElement("br"), facts);
    button.append(strip, words);
    button.addEventListener("click", () => choose(k, true));
    item.append(button);
    list.append(item);
  }
};
for (const id of ["order", "class", "show"]) get(id).addEventListener("change", fill);
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
