"use strict";
// The map of medvlp/show/scatter.py: hover, lasso, keyboard. All text enters the page as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const canvas = byId("map"), card = byId("card"), pen = canvas.getContext("2d");
const n = data.x.length, SHOWN = 200, REACH = 14; // points; thumbnails listed; pixels from a mark
const hiddenColours = new Set(), hiddenKinds = new Set(), chosen = new Set();
let view = { x: 0.5, y: 0.5, zoom: 1 }, current = -1, lasso = null, moving = null;

const star = (tips, inner) => Array.from({ length: 2 * tips }, (_, i) => {
  const angle = Math.PI * (i / tips - 0.5), r = i % 2 ? inner : 1.2;
  return [r * Math.cos(angle), r * Math.sin(angle)];
});
const turned = (shape, angle) => shape.map(([x, y]) => [
  x * Math.cos(angle) - y * Math.sin(angle), x * Math.sin(angle) + y * Math.cos(angle)]);
const plus = [[-0.4, -1], [0.4, -1], [0.4, -0.4], [1, -0.4], [1, 0.4], [0.4, 0.4], [0.4, 1], [-0.4, 1],
  [-0.4, 0.4], [-1, 0.4], [-1, -0.4], [-0.4, -0.4]];
const triangle = [[0, -1.1], [1, 0.8], [-1, 0.8]], square = [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]];
const SHAPES = [null, triangle, square, turned(square, Math.PI / 4), plus, turned(plus, Math.PI / 4),
  turned(triangle, Math.PI), star(5, 0.5), turned(triangle, -Math.PI / 2), turned(triangle, Math.PI / 2)];

const side = () => canvas.clientWidth;
const visible = (i) => !hiddenColours.has(data.colour[i]) && !hiddenKinds.has(data.kind[i]);
const place = (i) => [
  ((data.x[i] - view.x) * 0.94 * view.zoom + 0.5) * side(),
  ((data.y[i] - view.y) * 0.94 * view.zoom + 0.5) * side(),
];

function mark(i, grow) {
  const [x, y] = place(i), r = Math.max(data.radius[data.kind[i]] * grow, grow > 1.3 ? 5 : 0), shape = SHAPES[data.kind[i]];
  pen.beginPath();
  if (shape === null) pen.arc(x, y, r, 0, 2 * Math.PI);
  else {
    shape.forEach(([a, b], k) => (k ? pen.lineTo(x + r * a, y + r * b) : pen.moveTo(x + r * a, y + r * b)));
    pen.closePath();
  }
  pen.fillStyle = data.palette[data.colour[i]];
  pen.fill();
  pen.stroke();
}

function draw() {
  const ratio = window.devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
  canvas.width = canvas.height = Math.round(side() * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.lineWidth = 0.5;
  pen.strokeStyle = style.getPropertyValue("--back");
  for (let i = 0; i < n; i++) if (visible(i) && !chosen.has(i)) mark(i, 1);
  pen.lineWidth = 1.5;
  pen.strokeStyle = style.getPropertyValue("--text");
  for (const i of chosen) if (visible(i)) mark(i, 1.15);
  pen.lineWidth = 2;
  if (current >= 0) mark(current, 1.5);
  if (lasso) {
    pen.lineWidth = 1.5;
    pen.beginPath();
    lasso.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.stroke();
  }
}

function thumbnail(i, size) {
  const tile = data.tile[i];
  if (tile < 0) return null;
  const { url, side: px, columns, rows } = data.sheet, box = document.createElement("div");
  box.className = "thumb";
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", "image " + data.image[i]);
  box.style.width = box.style.height = size + "px";
  box.style.backgroundImage = `url(${url})`;
  box.style.backgroundSize = `${columns * size}px ${rows * size}px`;
  box.style.backgroundPosition = `-${(tile % columns) * size}px -${Math.floor(tile / columns) * size}px`;
  return box;
}

function words(i) {
  const box = document.createElement("div");
  box.textContent = data.columns.map((c) => c.values[c.of[i]]).filter((text) => text).join("\n");
  return box;
}

function look(i) {
  current = i;
  card.hidden = i < 0;
  if (i >= 0) {
    const picture = thumbnail(i, 96), [x, y] = place(i), half = side() / 2;
    card.replaceChildren(...[picture, words(i)].filter((part) => part));
    card.style.left = x < half ? x + 14 + "px" : "auto";
    card.style.right = x < half ? "auto" : byId("place").clientWidth - x + 14 + "px";
    card.style.top = y < half ? y + 8 + "px" : "auto";
    card.style.bottom = y < half ? "auto" : byId("place").clientHeight - y + 8 + "px";
  }
  draw();
}

function list() {
  const points = [...chosen].sort((a, b) => data.row[a] - data.row[b]);
  const first = points.slice(0, SHOWN).map((i) => {
    const figure = document.createElement("figure"), picture = thumbnail(i, 96);
    figure.append(...[picture, words(i)].filter((part) => part));
    return figure;
  });
  byId("chosen").replaceChildren(...first);
  const more = points.length > SHOWN ? `, the first ${SHOWN} are shown` : "";
  byId("count").textContent = points.length ? `${points.length} chosen${more}:` : "Nothing is chosen.";
  byId("rows").value = points.length ? `[${points.map((i) => data.row[i]).join(", ")}]` : "";
  draw();
}

function toggle(i) {
  if (!chosen.delete(i)) chosen.add(i);
  list();
}

function nearest(x, y) {
  let best = -1, least = REACH * REACH;
  for (let i = 0; i < n; i++) {
    if (!visible(i)) continue;
    const [a, b] = place(i), far = (a - x) ** 2 + (b - y) ** 2;
    if (far <= least) [best, least] = [i, far];
  }
  return best;
}

function inside(x, y, path) {
  let odd = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [a, b] = path[i], [c, e] = path[j];
    if (b > y !== e > y && x < ((c - a) * (y - b)) / (e - b) + a) odd = !odd;
  }
  return odd;
}

function step(right, down) {
  // the nearest mark in a direction, within 45 degrees of it
  const [x, y] = current >= 0 ? place(current) : [side() / 2 - right, side() / 2 - down];
  let best = -1, least = Infinity;
  for (let i = 0; i < n; i++) {
    if (i === current || !visible(i)) continue;
    const [a, b] = place(i), along = (a - x) * right + (b - y) * down;
    const aside = Math.abs((a - x) * down) + Math.abs((b - y) * right);
    if (along > 0.5 && aside <= along && along + aside < least) [best, least] = [i, along + aside];
  }
  if (best >= 0) look(best);
}

function next(by) {
  // the marks in their order, and from the last one to the first
  for (let k = 1, i = current < 0 && by < 0 ? 0 : current; k <= n; k++) {
    i = (i + by + n) % n;
    if (visible(i)) return look(i);
  }
}

function zoom(factor) {
  view = factor ? { ...view, zoom: Math.min(64, Math.max(1, view.zoom * factor)) } : { x: 0.5, y: 0.5, zoom: 1 };
  look(current);
}

const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left - 1, event.clientY - box.top - 1];
};
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (event.shiftKey || byId("pan").getAttribute("aria-pressed") === "true") moving = { from: at(event), view };
  else lasso = [at(event)];
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = at(event);
  if (moving) {
    const per = 1 / (0.94 * view.zoom * side());
    view = { ...moving.view, x: moving.view.x - (x - moving.from[0]) * per, y: moving.view.y - (y - moving.from[1]) * per };
    look(-1);
  } else if (lasso) {
    lasso.push([x, y]);
    look(-1);
  } else look(nearest(x, y));
});
canvas.addEventListener("pointerup", (event) => {
  const path = lasso;
  lasso = moving = null;
  if (!path) return;
  const [x, y] = path[0], far = Math.max(...path.map(([a, b]) => Math.abs(a - x) + Math.abs(b - y)));
  if (far > 6) {
    if (!event.ctrlKey && !event.metaKey) chosen.clear();
    for (let i = 0; i < n; i++) if (visible(i) && inside(...place(i), path)) chosen.add(i);
    list();
  } else if (nearest(x, y) >= 0) toggle(nearest(x, y));
});
canvas.addEventListener("pointercancel", () => { lasso = moving = null; draw(); });
canvas.addEventListener("pointerleave", () => { if (!lasso && !moving) look(-1); });
canvas.addEventListener("keydown", (event) => {
  const keys = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    PageDown: () => next(1), PageUp: () => next(-1),
    Enter: () => current >= 0 && toggle(current), "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
    Escape: () => { chosen.clear(); list(); look(-1); },
  };
  if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    keys[event.key]();
  }
});

function legend(place, names, hidden, sign) {
  names.forEach((name, k) => {
    const button = document.createElement("button");
    button.setAttribute("aria-pressed", "true");
    button.append(sign(k), name);
    button.addEventListener("click", () => {
      if (!hidden.delete(k)) hidden.add(k);
      button.setAttribute("aria-pressed", String(!hidden.has(k)));
      look(-1);
    });
    byId(place).append(button);
  });
}
legend("colours", data.colours, hiddenColours, (k) => {
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = data.palette[k];
  return dot;
});
legend("kinds", data.kinds, hiddenKinds, (k) => "\u25cf\u25b2\u25a0\u25c6\u271a\u2716\u25bc\u2605\u25c0\u25b6"[k] + " ");
byId("in").addEventListener("click", () => zoom(1.5));
byId("out").addEventListener("click", () => zoom(1 / 1.5));
byId("all").addEventListener("click", () => zoom(0));
byId("pan").addEventListener("click", ({ target }) =>
  target.setAttribute("aria-pressed", String(target.getAttribute("aria-pressed") !== "true")));
byId("clear").addEventListener("click", () => { chosen.clear(); list(); });
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(draw).observe(canvas);
card.setAttribute("aria-live", "polite");
